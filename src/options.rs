//! Every setting, flattened from the modules that own them. A setting's value is that of its flag, else of
//! its environment variable, else of its key in the settings file, else its default.

mod setting;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::builder::{BoolishValueParser, OsStr};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::journal::{Rule, Rules};
use crate::message::Pattern;
use crate::value::duration;
use crate::{api, auth, delivery, hub, journal, limits, net};

pub use setting::{Setting, Source};

/// The settings of a [`Server`](crate::Server).
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// The settings of the journal.
    #[command(flatten, next_help_heading = "Journal")]
    pub journal: journal::Options,
    /// The settings of requests.
    #[command(flatten, next_help_heading = "Requests")]
    pub api: api::Options,
    /// The settings of who may do what.
    #[command(flatten, next_help_heading = "Who may")]
    pub auth: auth::Options,
    /// The settings of the hub.
    #[command(flatten, next_help_heading = "Subscribers")]
    pub hub: hub::Options,
    /// The settings of streams.
    #[command(flatten, next_help_heading = "Subscribers")]
    pub delivery: delivery::Options,
    /// The settings of memory and of addresses.
    #[command(flatten, next_help_heading = "Connections")]
    pub limits: limits::Options,
    /// The settings of connections.
    #[command(flatten, next_help_heading = "Connections")]
    pub net: net::Options,
}

impl Default for Options {
    /// The default of every setting.
    fn default() -> Self {
        let command = Options::augment_args(Command::new("tabcast").no_binary_name(true));
        let matches = command.try_get_matches_from([] as [&str; 0]);
        matches.and_then(|matches| Options::from_arg_matches(&matches)).expect("every setting has a default")
    }
}

impl Options {
    /// Checks the settings that depend on each other.
    ///
    /// # Errors
    /// Which two settings don't go together.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.delivery.retry_min > self.delivery.retry_max {
            return Err("--retry-min must not be more than --retry-max");
        }
        // A text may be six times as long as JSON, and is in memory itself: more than the share of bodies.
        if self.api.max_body.as_u64().saturating_mul(20) > self.limits.max_memory.as_u64() {
            return Err("--max-memory must be at least 20 times --max-body");
        }
        Ok(())
    }

    /// These settings, but those of `new` where they [can change](can_change) while a hub serves.
    pub(crate) fn changed_to(&self, new: &Options) -> Options {
        let mut options = self.clone();
        options.api = api::Options { public: self.api.public.clone(), ..new.api.clone() };
        let auth::Options { jwks_url, auth_url, .. } = self.auth.clone();
        options.auth = auth::Options { jwks_url, auth_url, ..new.auth.clone() };
        options.hub = hub::Options { replay_page: self.hub.replay_page, ..new.hub.clone() };
        options.net.max_connections_per_address = new.net.max_connections_per_address;
        options.journal.rules = new.journal.rules.clone();
        options.limits.publish_rate = new.limits.publish_rate;
        options.limits.connect_rate = new.limits.connect_rate;
        options
    }

    /// The most connections from one address.
    pub(crate) fn max_connections_per_address(&self) -> usize {
        self.net.max_connections_per_address.unwrap_or_else(|| {
            let subscribers = self.hub.max_subscribers_per_address;
            let connections = self.net.max_connections;
            subscribers.saturating_add(subscribers / 2).max(100).min(connections - connections / 4)
        })
    }
}

/// Whether a setting can change while a hub serves, by its flag's name, or its table's, as in `[[grant]]`.
/// The log's own can, in the program `tabcast`.
pub fn can_change(flag: &str) -> bool {
    const OTHERS: [&str; 11] = [
        "max-subscribers",
        "max-subscribers-per-address",
        "max-readers",
        "max-readers-per-address",
        "max-connections-per-address",
        "publish-rate",
        "connect-rate",
        "log",
        "log-level",
        "[[grant]]",
        "[[channel]]",
    ];
    const FIXED: [&str; 3] = ["public", "jwks-url", "auth-url"];
    let whole = api::Options::augment_args(auth::Options::augment_args(Command::new("tabcast")));
    let can_change = OTHERS.contains(&flag) || whole.get_arguments().any(|arg| arg.get_long() == Some(flag));
    can_change && !FIXED.contains(&flag)
}

/// The path of the settings file.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct SettingsFile {
    /// A TOML file of settings, whose keys are the flags' names: max-body = "2MiB". A flag or environment
    /// variable wins over it
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,
}

/// What only a settings file has: its tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// The tables `[[channel]]`.
    pub channels: Rules,
    /// The tables `[[grant]]`.
    pub grants: auth::Rules,
}

/// Reads the command's settings from the arguments, the environment and the settings file, and the tables,
/// which only the file has.
///
/// # Errors
/// [`clap::Error`] if one of the three is invalid, and for `--help` and `--version`.
pub fn read(command: Command, arguments: Vec<OsString>) -> Result<(ArgMatches, Tables), clap::Error> {
    let matches = with_environment(command.clone()).try_get_matches_from(&arguments)?;
    let Some(path) = matches.get_one::<PathBuf>("config") else { return Ok((matches, Tables::default())) };
    let (command, tables) = with_file(command, path)?;
    Ok((with_environment(command).try_get_matches_from(arguments)?, tables))
}

/// Each setting that was read so, in the command's order, and then the tables.
///
/// # Errors
/// If the settings file can't be read again.
pub fn settings(command: &Command, matches: &ArgMatches, tables: &Tables) -> io::Result<Vec<Setting>> {
    let path = matches.get_one::<PathBuf>("config");
    let text = path.map_or_else(|| Ok(String::new()), fs::read_to_string)?;
    let keys: toml::Table = text.parse().map_err(io::Error::other)?;
    let file = || path.map_or(Source::Default, |path| Source::File(path.clone()));
    let setting = |arg: &Arg| {
        let is_key = arg.get_long().is_some_and(|flag| keys.contains_key(flag));
        Setting::of(arg, variable(arg), matches, if is_key { file() } else { Source::Default })
    };
    let flags = command.get_arguments().filter_map(setting);
    let channels = Setting::of_tables("[[channel]]", tables.channels.iter(), file());
    let grants = Setting::of_tables("[[grant]]", tables.grants.iter(), file());
    Ok(flags.chain([channels, grants]).collect())
}

/// The name of the environment variable for this setting.
fn variable(arg: &Arg) -> String {
    format!("TABCAST_{}", arg.get_id().as_str().to_ascii_uppercase())
}

/// The command with an environment variable for each setting: `TABCAST_MAX_BODY` for `--max-body`. A variable
/// that is empty counts as not set.
fn with_environment(command: Command) -> Command {
    command.mut_args(|arg| {
        let variable = variable(&arg);
        let is_empty = env::var_os(&variable).is_some_and(|value| value.is_empty());
        let arg = if is_empty { arg } else { arg.env(variable).hide_env_values(true) };
        boolish(arg)
    })
}

/// The flag with `1`, `yes` and `on` for `true` where it is a variable or a key, and the like for `false`.
fn boolish(arg: Arg) -> Arg {
    match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    }
}

/// The command with the values of a settings file as its defaults, and the file's tables.
fn with_file(mut command: Command, path: &Path) -> Result<(Command, Tables), clap::Error> {
    let fails = |command: &mut Command, kind, what: &dyn std::fmt::Display| {
        command.error(kind, format!("the settings file {}: {what}", path.display()))
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return Err(fails(&mut command, ErrorKind::Io, &error)),
    };
    let mut table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return Err(fails(&mut command, ErrorKind::InvalidValue, &error)),
    };
    let channels = table.remove("channel").map_or(Ok(Rules::default()), |value| rules(&value));
    let grants = table.remove("grant").map_or(Ok(auth::Rules::default()), |value| auth::Rules::parse(&value));
    let tables = match channels.and_then(|channels| Ok(Tables { channels, grants: grants? })) {
        Ok(tables) => tables,
        Err(what) => return Err(fails(&mut command, ErrorKind::ValueValidation, &what)),
    };
    for (key, value) in table {
        let is_key = |arg: &&Arg| arg.get_long() == Some(&key) && arg.get_id() != "config";
        let Some(arg) = command.get_arguments().find(is_key).cloned() else {
            let what = format!("the key `{key}` is unknown: keys are the flags' names, without `--`");
            return Err(fails(&mut command, ErrorKind::UnknownArgument, &what));
        };
        let Some(values) = texts(&value) else {
            let what = format!("`{key}` must be a string, a whole number, a boolean, or a list of those");
            return Err(fails(&mut command, ErrorKind::InvalidValue, &what));
        };
        let (id, arg) = (arg.get_id().clone(), boolish(arg).default_values(values));
        // The setting is parsed alone, so that a bad value is known to be the file's.
        if let Err(error) = Command::new("tabcast").arg(arg.clone()).try_get_matches_from(["tabcast"]) {
            let what = error.to_string();
            let what = what.trim_start_matches("error: ").lines().next().unwrap_or_default();
            return Err(fails(&mut command, ErrorKind::ValueValidation, &what));
        }
        command = command.mut_arg(id, |_| arg);
    }
    Ok((command, tables))
}

/// The rules in the tables `[[channel]]`.
///
/// # Errors
/// Which table is wrong, by its number, and what is wrong with it.
fn rules(value: &toml::Value) -> Result<Rules, String> {
    let tables = value.as_array().ok_or("`channel` must be tables, each after a line [[channel]]")?;
    if tables.len() > Rules::MOST {
        return Err(format!("there are {} tables [[channel]], the limit is {}", tables.len(), Rules::MOST));
    }
    let rule = |(number, table): (usize, &toml::Value)| {
        rule(table).map_err(|what| format!("the table [[channel]] number {}: {what}", number + 1))
    };
    Ok(Rules::new(tables.iter().enumerate().map(rule).collect::<Result<Vec<_>, _>>()?))
}

fn rule(table: &toml::Value) -> Result<Rule, String> {
    let table = table.as_table().ok_or("it must be a table")?;
    let (mut channels, mut messages, mut age) = (None, None, None);
    for (key, value) in table {
        let bad = |what: String| format!("`{key}` {what}");
        match (key.as_str(), value) {
            ("match", toml::Value::String(text)) => {
                let pattern = Pattern::parse(text, usize::MAX).map_err(|error| bad(error.to_string()))?;
                channels = Some(pattern);
            }
            ("match", _) => return Err(bad("must be a string".to_owned())),
            ("messages", toml::Value::Integer(count)) => {
                let count = usize::try_from(*count).ok().filter(|count| *count > 0);
                messages = Some(count.ok_or_else(|| bad("must be at least 1".to_owned()))?);
            }
            ("messages", _) => return Err(bad("must be a whole number".to_owned())),
            ("age", toml::Value::String(text)) => age = Some(duration(text).map_err(bad)?),
            ("age", _) => return Err(bad("must be a string, as in \"1m\"".to_owned())),
            _ => return Err(bad("is unknown: the keys are match, messages, age".to_owned())),
        }
    }
    let channels = channels.ok_or("`match` is missing: which channels it is for")?;
    if messages.is_none() && age.is_none() {
        return Err("`messages` and `age` are missing: it must have one of them".to_owned());
    }
    Ok(Rule { channels, messages, age })
}

/// The texts that a flag would have for this value: several for a list. `None` if no flag could have it.
fn texts(value: &toml::Value) -> Option<Vec<OsStr>> {
    match value {
        toml::Value::String(text) => Some(vec![text.into()]),
        toml::Value::Integer(number) => Some(vec![number.to_string().into()]),
        toml::Value::Boolean(is_on) => Some(vec![is_on.to_string().into()]),
        toml::Value::Array(values) => {
            let values = values.iter().map(|value| texts(value).filter(|_| !value.is_array()));
            values.collect::<Option<Vec<_>>>().map(|values| values.concat())
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_well_formed() {
        with_environment(Options::augment_args(Command::new("tabcast"))).debug_assert();
    }

    #[test]
    fn the_defaults_go_together() {
        assert_eq!(Options::default().check(), Ok(()));
    }
}
