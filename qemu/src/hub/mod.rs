//! The lab network: an Ethernet switch between machines, over the unix sockets of QEMU's `-netdev stream`.
//!
//! One thread and poll(2). A machine that does not read (it is stopped) loses frames, as on a real switch; it never
//! holds up the others.

mod port;
mod switch;

use port::Port;
use rustix::event::{PollFd, PollFlags, poll};
use std::{collections::BTreeMap, fs, io, os::fd::AsFd, os::unix::net::UnixListener, path::Path};
use switch::{Forward, PortId, Switch};

/// Serves until killed.
pub fn run(socket: &Path) -> io::Result<()> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let mut hub = Hub {
        ports: BTreeMap::new(),
        switch: Switch::default(),
        next: 0,
    };
    loop {
        hub.turn(&listener)?;
    }
}

struct Hub {
    ports: BTreeMap<PortId, Port>,
    switch: Switch,
    next: PortId,
}

impl Hub {
    /// Waits for something to do and does it.
    fn turn(&mut self, listener: &UnixListener) -> io::Result<()> {
        let ids: Vec<PortId> = self.ports.keys().copied().collect();
        let mut waits = vec![PollFd::new(listener, PollFlags::IN)];
        for port in self.ports.values() {
            let flags = if port.has_output() {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            };
            waits.push(PollFd::from_borrowed_fd(port.stream.as_fd(), flags));
        }
        match poll(&mut waits, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events: Vec<PollFlags> = waits.iter().map(PollFd::revents).collect();
        if events[0].contains(PollFlags::IN) {
            self.accept(listener)?;
        }
        for (id, event) in ids.into_iter().zip(&events[1..]) {
            if event.contains(PollFlags::OUT)
                && self.ports.get_mut(&id).is_some_and(|port| port.flush().is_err())
            {
                self.remove(id);
            }
            if event.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.receive(id);
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: &UnixListener) -> io::Result<()> {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                self.ports.insert(self.next, Port::new(stream));
                self.next += 1;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, from: PortId) {
        let Some(port) = self.ports.get_mut(&from) else {
            return;
        };
        let frames = match port.receive() {
            Ok(frames) => frames,
            Err(_) => return self.remove(from),
        };
        for frame in frames {
            let targets: Vec<PortId> = match self.switch.forward(from, &frame) {
                Forward::Drop => Vec::new(),
                Forward::To(port) => vec![port],
                Forward::Flood => self.ports.keys().copied().filter(|port| *port != from).collect(),
            };
            for target in targets {
                if self
                    .ports
                    .get_mut(&target)
                    .is_some_and(|port| port.send(&frame).is_err())
                {
                    self.remove(target);
                }
            }
        }
    }

    fn remove(&mut self, id: PortId) {
        self.ports.remove(&id);
        self.switch.forget(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
    };

    fn frame(to: u8, from: u8, text: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x52, 0, 0, 0, 0, to, 0x52, 0, 0, 0, 0, from, 8, 0];
        frame.extend_from_slice(text);
        frame
    }

    fn send(stream: &mut UnixStream, frame: &[u8]) {
        stream.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(frame).unwrap();
    }

    fn receive(stream: &mut UnixStream) -> Vec<u8> {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        frame
    }

    #[test]
    fn frames_go_where_they_should_and_a_deaf_machine_stops_nobody() {
        let socket = std::env::temp_dir().join(format!("hub-test-{}", std::process::id()));
        let listener_socket = socket.clone();
        thread::spawn(move || run(&listener_socket).unwrap());
        let connect = || loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                stream
                    .set_read_timeout(Some(std::time::Duration::from_secs(30)))
                    .unwrap();
                break stream;
            }
            thread::yield_now();
        };
        let (mut a, mut b, _deaf) = (connect(), connect(), connect());
        // Unknown destination: everyone else gets it; the answer then goes to the one who asked.
        send(&mut a, &frame(2, 1, b"who is 2"));
        assert_eq!(receive(&mut b), frame(2, 1, b"who is 2"));
        send(&mut b, &frame(1, 2, b"me"));
        assert_eq!(receive(&mut a), frame(1, 2, b"me"));
        // Far more than the deaf machine's socket holds, flooded; the last one proves that all were forwarded.
        for _ in 0..2000 {
            send(&mut a, &frame(0xff, 1, &[0; 1400]));
            assert_eq!(receive(&mut b).len(), 1414);
        }
        send(&mut a, &frame(2, 1, b"done"));
        assert_eq!(receive(&mut b), frame(2, 1, b"done"));
        fs::remove_file(&socket).unwrap();
    }
}
