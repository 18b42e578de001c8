//! The gate: every query of the file passes it. The writer closes it to be alone with the file for a moment.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The hub's own queries of the file. Other programs know no gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    /// How many queries run.
    inside: usize,
}

/// A query that runs. It has ended once this is dropped.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

/// The gate is closed, and no query runs. It opens once this is dropped.
#[derive(Debug)]
pub(super) struct Closed<'a>(&'a Gate);

impl Gate {
    /// Begins a query. Waits while the gate is closed.
    pub(super) fn enter(&self) -> Inside<'_> {
        let state = self.changed.wait_while(self.state(), |state| state.is_closed);
        state.unwrap_or_else(PoisonError::into_inner).inside += 1;
        Inside(self)
    }

    /// Lets no other query begin, and waits for those that run. `None` if some of them still run after
    /// `longest`; the gate is open again then.
    pub(super) fn close(&self, longest: Duration) -> Option<Closed<'_>> {
        let mut state = self.state();
        state.is_closed = true;
        let closed = Closed(self);
        let waited = self.changed.wait_timeout_while(state, longest, |state| state.inside > 0);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        // Before `closed` is dropped, which locks the state again.
        drop(state);
        (!timeout.timed_out()).then_some(closed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        // To wake those who wait costs as much as a short query, and only who closes the gate waits for this.
        if state.is_closed {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state().is_closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_gate_is_closed_only_once_no_query_runs_and_is_open_again_if_one_runs_for_too_long() {
        let gate = Gate::default();
        let query = gate.enter();
        assert!(gate.close(Duration::ZERO).is_none());
        let second = gate.enter();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| gate.close(LONG).is_some());
            drop((query, second));
            assert!(writer.join().unwrap());
        });
        drop(gate.enter());
    }

    #[test]
    fn a_query_waits_while_the_gate_is_closed() {
        let gate = Gate::default();
        let closed = gate.close(Duration::ZERO).unwrap();
        let (entered, is_inside) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _inside = gate.enter();
                entered.send(()).unwrap();
            });
            assert!(is_inside.try_recv().is_err());
            drop(closed);
            is_inside.recv_timeout(LONG).unwrap();
        });
    }
}
