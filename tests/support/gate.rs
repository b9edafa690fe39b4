//! A door that a test holds shut until it wants the far side to go on.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

/// Closed when made. Clones are the same door.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // One permit lets one waiter through; a closed semaphore lets everybody through.
    permits: Semaphore,
    arrivals: watch::Sender<usize>,
}

impl Gate {
    pub fn closed() -> Gate {
        Gate(Arc::new(Inner {
            permits: Semaphore::new(0),
            arrivals: watch::Sender::new(0),
        }))
    }

    /// For good.
    pub fn open(&self) {
        self.0.permits.close();
    }

    /// The next `n` that wait or come.
    pub fn let_through(&self, n: usize) {
        self.0.permits.add_permits(n);
    }

    /// Waits until it is open, or takes one of the passes that [`Gate::let_through`] gave out.
    pub async fn pass(&self) {
        self.0.arrivals.send_modify(|n| *n += 1);
        if let Ok(permit) = self.0.permits.acquire().await {
            permit.forget();
        }
    }

    /// Until `n` in all have come to the gate, whether or not they are through.
    pub async fn wait_for_arrivals(&self, n: usize) {
        let mut arrivals = self.0.arrivals.subscribe();
        let outcome = tokio::time::timeout(super::DEADLINE, arrivals.wait_for(|seen| *seen >= n)).await;
        if outcome.is_err() {
            panic!("waited for {n} at the gate, {} came", *self.0.arrivals.borrow());
        }
    }
}
