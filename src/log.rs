//! The log: one line on stderr for each event, written by a thread of its own. A paused terminal, or a pipe
//! that is not read, must not stop the hub: the log then drops lines. A flood of requests must not become a
//! flood of lines: of each kind, so many are written in a second, and the rest are counted.

mod kind;
mod value;

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{Registry, reload};

use kind::Kinds;

/// The settings of the log.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// How much is logged: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    /// How much of the program's parts is logged, as in info,tabcast::journal=debug; of parts that are not
    /// named, as much as --log-level says
    #[arg(long, value_name = "FILTER")]
    pub log: Option<Targets>,

    /// The most lines of one kind in a second; a line says how many more there were; 0 is no limit
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub log_rate: u32,
}

impl Options {
    /// The filter that `log` gives, with `log_level` for the parts that `log` does not name.
    fn filter(&self) -> Targets {
        let targets = self.log.clone().unwrap_or_default();
        match targets.default_level() {
            Some(LevelFilter::OFF) | None => targets.with_default(self.log_level),
            Some(_) => targets,
        }
    }
}

/// Logs this process's events to stderr. Dropping the [`Log`] writes the lines that wait, if stderr is read.
///
/// # Errors
/// If the log's thread can't be started, or the process has a log already.
pub fn to_stderr(options: &Options) -> anyhow::Result<Log> {
    let is_colored =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = Arc::new(Lines::new(Kinds::new(options.log_rate), is_colored));
    let formatter = Formatter { lines: Arc::clone(&lines) };
    let (filter, changes) = reload::Layer::new(options.filter());
    let layers = tracing_subscriber::registry().with(filter).with(formatter);
    tracing::subscriber::set_global_default(layers)?;
    let writer = Arc::clone(&lines);
    thread::Builder::new().name("log".to_owned()).spawn(move || writer.write_all())?;
    Ok(Log { lines, filter: changes })
}

/// The log of this process, as [`to_stderr`] made it.
#[derive(Debug)]
pub struct Log {
    lines: Arc<Lines>,
    filter: reload::Handle<Targets, Registry>,
}

impl Log {
    /// Logs as much as these settings say from now on.
    pub fn filter_by(&self, options: &Options) {
        // Fails only without a registry, which the process has until its end.
        let _ = self.filter.reload(options.filter());
    }

    /// Logs a last line, whatever the level.
    pub fn say(self, line: &str) {
        self.lines.push(&format!("{line}\n"));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        /// How long the drop waits for the last lines to be written. Higher: a process whose stderr is not
        /// read takes longer to exit. Lower: a slow reader of stderr misses lines.
        const PATIENCE: Duration = Duration::from_millis(500);
        self.lines.waiting().ended = true;
        self.lines.changed.notify_all();
        let written = |waiting: &mut Waiting| !waiting.written;
        let _ = self.lines.changed.wait_timeout_while(self.lines.waiting(), PATIENCE, written);
    }
}

/// Formats each event as a line, if its kind may have one.
struct Formatter {
    lines: Arc<Lines>,
}

impl<S: tracing::Subscriber> Layer<S> for Formatter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            /// The thread's last line, whose text the next line reuses, and its time in seconds.
            static LAST: Cell<(String, u64)> = const { Cell::new((String::new(), u64::MAX)) };
        }
        /// The most bytes of a line. The hub's own lines are shorter, because their values are.
        const MAX_LINE: usize = 2048;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(kind) = self.lines.kinds.over(event.metadata(), now.as_secs()) {
            if kind.leave_out(event) {
                self.lines.will_summarize();
            }
            return;
        }
        let (level, dim, plain) = style(*event.metadata().level(), self.lines.is_colored);
        let (mut line, second) = LAST.take();
        let date_and_time = dim.len() + "2026-11-23T02:40:11".len();
        if second == now.as_secs() {
            // The date stays: formatting it takes longer than all else, and most lines share it.
            line.truncate(date_and_time);
        } else {
            line.clear();
            let _ = write!(line, "{dim}{}", humantime::format_rfc3339_seconds(UNIX_EPOCH + now));
            line.truncate(date_and_time);
        }
        let mut digits = itoa::Buffer::new();
        // The million in front keeps the leading zeros, and is cut off.
        let micros = &digits.format(1_000_000 + now.subsec_micros())[1..];
        for part in [".", micros, "Z", plain, " ", level] {
            line.push_str(part);
        }
        event.record(&mut Values(&mut line));
        if line.len() > MAX_LINE {
            line.truncate(line.floor_char_boundary(MAX_LINE));
            line.push('…');
        }
        line.push('\n');
        self.lines.push(&line);
        LAST.set((line, now.as_secs()));
    }
}

/// The text of a level, and the codes that make text dim and plain again.
fn style(level: Level, colored: bool) -> (&'static str, &'static str, &'static str) {
    let levels = [
        (Level::ERROR, "ERROR", "\x1b[31mERROR\x1b[0m"),
        (Level::WARN, " WARN", "\x1b[33m WARN\x1b[0m"),
        (Level::INFO, " INFO", "\x1b[32m INFO\x1b[0m"),
        (Level::DEBUG, "DEBUG", "\x1b[34mDEBUG\x1b[0m"),
    ];
    let trace = (Level::TRACE, "TRACE", "\x1b[35mTRACE\x1b[0m");
    let (_, bare, bright) = levels.into_iter().find(|(which, ..)| *which == level).unwrap_or(trace);
    if colored { (bright, "\x1b[2m", "\x1b[0m") } else { (bare, "", "") }
}

/// Adds an event's fields to its line: the message as it is, the others as ` name=value`.
struct Values<'a>(&'a mut String);

impl Values<'_> {
    fn name(&mut self, field: &Field) {
        self.0.push(' ');
        if field.name() != "message" {
            self.0.push_str(field.name());
            self.0.push('=');
        }
    }
}

impl Visit for Values<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        value::push_text(self.0, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        if field.name() == "message" {
            value::push_whole(self.0, value);
        } else {
            value::push_cut(self.0, value);
        }
    }
}

/// The lines that wait for the log's thread.
#[derive(Debug)]
struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    kinds: Kinds,
    is_colored: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    text: String,
    /// How many lines were dropped since the last write.
    dropped: usize,
    /// When the next summary of the lines left out is due. `None` if none were left out.
    summary: Option<Instant>,
    /// Set once no more lines will come.
    ended: bool,
    /// Set once all lines are written.
    written: bool,
}

impl Lines {
    fn new(kinds: Kinds, is_colored: bool) -> Self {
        Lines { waiting: Mutex::default(), changed: Condvar::new(), kinds, is_colored }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line. Drops it if too many wait.
    fn push(&self, line: &str) {
        /// The most bytes that wait, beside those being written. Higher: more memory while stderr is not
        /// read. Lower: a burst of lines loses some.
        const MAX_WAITING: usize = 1 << 20;
        let mut waiting = self.waiting();
        if waiting.text.len() + line.len() > MAX_WAITING {
            waiting.dropped += 1;
            return;
        }
        let is_first = waiting.text.is_empty();
        waiting.text.push_str(line);
        drop(waiting);
        if is_first {
            self.changed.notify_all();
        }
    }

    /// Has the thread write a summary of the lines left out, a while from now.
    fn will_summarize(&self) {
        /// From the first line left out to the summary. Higher: a flood is seen later. Lower: more summaries.
        const LATER: Duration = Duration::from_secs(1);
        self.waiting().summary.get_or_insert_with(|| Instant::now() + LATER);
        self.changed.notify_all();
    }

    /// Waits until lines are there, a summary is due, or no more will come.
    fn wait(&self) -> MutexGuard<'_, Waiting> {
        let mut waiting = self.waiting();
        while waiting.text.is_empty() && !waiting.ended && !waiting.is_summary_due() {
            // With no summary ahead, the thread sleeps until it is woken.
            let left =
                waiting.summary.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            let woken = self.changed.wait_timeout(waiting, left);
            (waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        waiting
    }

    /// Writes lines until no more will come.
    fn write_all(&self) {
        /// How long lines are gathered before the next write. Higher: lines are seen later. Lower: the thread
        /// is woken more often, which costs more than a line.
        const TOGETHER: Duration = Duration::from_millis(5);
        let mut text = String::new();
        loop {
            let mut waiting = self.wait();
            mem::swap(&mut waiting.text, &mut text);
            let dropped = mem::take(&mut waiting.dropped);
            let ended = waiting.ended;
            let summarizes = ended || waiting.is_summary_due();
            if summarizes {
                // Before the counts are taken: a line that is left out from here on asks for a summary again.
                waiting.summary = None;
            }
            drop(waiting);
            if dropped > 0 {
                self.note(&mut text, Level::WARN, "lines are missing here that nobody read", dropped as u64);
            }
            if summarizes {
                for (level, message, count) in self.kinds.take_left_out() {
                    self.note(&mut text, level, format_args!("lines left out: {message}"), count);
                }
            }
            if ended && text.is_empty() {
                self.waiting().written = true;
                self.changed.notify_all();
                return;
            }
            write(&text, TOGETHER);
            text.clear();
            thread::sleep(TOGETHER);
        }
    }

    /// Adds a line of the log's own.
    fn note(&self, text: &mut String, level: Level, message: impl fmt::Display, count: u64) {
        let (level, dim, plain) = style(level, self.is_colored);
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let _ = writeln!(text, "{dim}{time}{plain} {level} {message} count={count}");
    }
}

impl Waiting {
    fn is_summary_due(&self) -> bool {
        self.summary.is_some_and(|at| at <= Instant::now())
    }
}

/// Writes the text. Where stderr does not block, waits for `pause` between tries.
fn write(text: &str, pause: Duration) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match io::stderr().write(rest) {
            Ok(length) => rest = &rest[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(pause),
            // There is nowhere to report the error.
            Err(_) => return,
        }
    }
}
