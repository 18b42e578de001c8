//! The command line: parses the arguments, runs the verb, returns the exit code. The verb that serves the hub
//! needs no name.

mod allocator;
mod check;
mod files;
mod listen;
mod serve;
mod token;

use std::fmt::Display;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tabcast::options::{self, Setting};

const EXAMPLES: &str = "\
Examples:
  tabcast                                                 serve the hub and its page
  curl -N http://127.0.0.1:3000/events                    watch
  curl -d 'Hello World!' http://127.0.0.1:3000/messages   send
  tabcast backup backup.db                                copy the journal, also while the hub runs
  tabcast --config tabcast.toml check                     say which settings are in force

Durations are written 500ms, 15s, 10m, 24h; sizes 64KiB, 1MiB, 2GiB. A flag wins over its
environment variable. SIGINT and SIGTERM stop the hub: every stream is ended, publishes in
flight are finished, and it exits with 0. SIGHUP has it read its settings and files again. It \
exits with 1 if it can't start or its journal fails, 2 on a bad flag.";

/// A live message hub: POST a message, and every open browser tab and every `curl -N` sees it at once.
#[derive(Debug, Parser)]
#[command(name = "tabcast", version, about, after_help = EXAMPLES, max_term_width = 110)]
#[command(subcommand_value_name = "VERB", subcommand_help_heading = "Verbs", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,

    #[command(flatten)]
    serve: serve::Settings,
}

/// The verbs. Without one, the hub is served.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Says which settings are in force and where each was read from; exits with 2 if the hub would not start
    /// with them
    Check,
    #[command(flatten)]
    Files(files::Verb),
    /// Makes keys and tokens, and says what a token holds
    #[command(subcommand)]
    Token(Box<token::Verb>),
}

/// Runs the verb that the process's arguments name. Ends the process on a bad argument, and after `--help`
/// or `--version`.
pub(crate) fn run() -> ExitCode {
    allocator::tune();
    let (cli, settings) = read().unwrap_or_else(|error| error.exit());
    match cli.verb {
        Some(Verb::Check) => match check::report(&cli.serve, &settings) {
            Ok(report) => {
                print!("{report}");
                ExitCode::SUCCESS
            }
            Err(error) => refused(error).exit(),
        },
        Some(Verb::Files(verb)) => files::run(verb, &cli.serve.options.journal.journal),
        Some(Verb::Token(verb)) => token::run(*verb, cli.serve.options.auth),
        None => serve::run(cli.serve, settings, || read().map(|(cli, settings)| (cli.serve, settings))),
    }
}

/// The command line, by the process's arguments, its environment and the settings file; and each setting.
fn read() -> Result<(Cli, Vec<Setting>), clap::Error> {
    let (matches, tables) = options::read(Cli::command(), std::env::args_os().collect())?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let settings = options::settings(&Cli::command(), &matches, &tables).map_err(refused)?;
    cli.serve.options.journal.rules = tables.channels;
    cli.serve.options.auth.rules = tables.grants;
    cli.serve.options.check().map_err(refused)?;
    Ok((cli, settings))
}

fn refused(error: impl Display) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, error)
}
