//! What the tests of the whole share: simulated machines, clusters in them, and waiting.

pub mod cluster;
pub mod machine;

use std::time::{Duration, Instant};

pub use cluster::{Cluster, Kubectl, busybox_image, hello_image, program};
pub use machine::{Disk, Machine};

/// How long a test waits for anything at the most.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Tries until it succeeds; after [`DEADLINE`] panics with the last reason.
pub fn wait_until<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > DEADLINE => {
                panic!("waited {} s for {what}; last: {last}", DEADLINE.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
