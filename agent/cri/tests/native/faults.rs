//! A proxy in front of a registry that breaks connections and remembers what it was asked.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Shared {
    cuts: AtomicUsize,
    asked: Mutex<Vec<u8>>,
}

pub struct Proxy {
    pub url: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Passes everything on to `upstream`; the first `cuts` connections end after `after` bytes of answers.
    pub fn start(upstream: &str, cuts: usize, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let shared = Arc::new(Shared {
            cuts: AtomicUsize::new(cuts),
            asked: Mutex::default(),
        });
        let (upstream, theirs) = (upstream.to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&upstream) else {
                    continue;
                };
                let (from, to) = (
                    client.try_clone().expect("clone"),
                    server.try_clone().expect("clone"),
                );
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || forward(from, to, usize::MAX, &shared, true));
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || forward(server, client, after, &shared, false));
            }
        });
        Self { url, shared }
    }

    /// Every request so far.
    pub fn asked(&self) -> String {
        String::from_utf8_lossy(&self.shared.asked.lock().expect("lock")).into_owned()
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, limit: usize, shared: &Shared, requests: bool) {
    let (mut buffer, mut passed) = ([0u8; 16 * 1024], 0);
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
        if requests {
            shared.asked.lock().expect("lock").extend_from_slice(&buffer[..n]);
        }
        passed += n;
        let spend = |left: usize| left.checked_sub(1);
        if passed > limit
            && shared
                .cuts
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend)
                .is_ok()
        {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
