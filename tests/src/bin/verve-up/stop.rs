//! The signal to stop: the guard closes our standard input.
//!
//! The guard does this on purpose, or the system does it because the guard was killed.

use std::io;
use std::thread;

use tokio::sync::watch;

/// Reports when it is time to stop.
pub struct Stop(watch::Receiver<bool>);

/// Watches standard input in a thread: a task that reads it could not be ended.
pub fn when_guard_signals() -> Stop {
    let (sender, receiver) = watch::channel(false);
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = sender.send(true);
    });
    Stop(receiver)
}

impl Stop {
    /// Returns when it is time.
    pub async fn wait(&mut self) {
        // An error would mean that the thread has ended, because the input has ended.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}
