//! The verb that checks the settings: says what is in force, and where it was read from.

use std::fmt::Write as _;

use tabcast::auth::Auth;
use tabcast::options::Setting;
use tabcast::{ServeError, Server};

use super::serve::Settings;

/// What is in force, a line for each setting, rule and file.
///
/// # Errors
/// Why the hub would not start with these settings.
pub(super) fn report(serve: &Settings, settings: &[Setting]) -> Result<String, ServeError> {
    let auth = Auth::new(&serve.options.auth)?;
    Server::check_access(&serve.options.auth, &serve.addresses())?;
    let mut report = String::new();
    for setting in settings {
        let _ = writeln!(report, "{setting}");
    }
    for (what, count) in auth.counts() {
        let _ = writeln!(report, "{what} read: {count}");
    }
    Ok(report)
}
