//! A setting in force: its flag, its value, and where that was read from.

use std::fmt;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};

/// A setting, or all rules of one kind.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The flag's name, as in `max-body`; of rules their table, as in `[[channel]]`.
    pub name: String,
    /// Its values, as they were given. `None` if it has none.
    pub value: Option<String>,
    /// Where they were read from.
    pub source: Source,
}

/// Where a setting's value was read from.
#[derive(Clone, Debug)]
pub enum Source {
    /// An argument.
    Flag,
    /// This variable of the environment.
    Variable(String),
    /// The settings file at this path.
    File(PathBuf),
    /// Nowhere: it is the default.
    Default,
}

impl Setting {
    /// The setting of this flag. `file` is where its value was read from, unless that is an argument or the
    /// environment. `None` for what is no flag.
    pub(super) fn of(arg: &Arg, variable: String, matches: &ArgMatches, file: Source) -> Option<Self> {
        let (id, name) = (arg.get_id().as_str(), arg.get_long()?.to_owned());
        let values = matches.get_raw(id).map(|values| values.map(|value| value.to_string_lossy()));
        let value = values.map(|values| values.collect::<Vec<_>>().join(", "));
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => Source::Variable(variable),
            _ => file,
        };
        Some(Setting { name, value, source })
    }

    /// The setting that these rules are, of tables of this name.
    pub(super) fn of_tables(
        name: &str,
        rules: impl Iterator<Item = impl fmt::Display>,
        file: Source,
    ) -> Self {
        let rules: Vec<_> = rules.map(|rule| rule.to_string()).collect();
        let value = (!rules.is_empty()).then(|| rules.join("; "));
        Setting { name: name.to_owned(), value, source: file }
    }

    /// Whether it is the same setting with the same value.
    pub fn is_same(&self, other: &Setting) -> bool {
        (&self.name, &self.value) == (&other.name, &other.value)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: {value} ({})", self.name, self.source),
            None => write!(f, "{}: not set", self.name),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Variable(name) => write!(f, "variable {name}"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}
