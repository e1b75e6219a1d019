//! The socket on which the node API asks for the machine's state and gives orders; root's alone.

use crate::{console, thread::keep};
use node_config::machine_state::{Order, SOCKET, STATE};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
    time::Duration,
};

/// A caller that says nothing, or takes no answer, is left after this time.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(5);
const LONGEST_LINE: u64 = 64;

/// One caller, waiting for the answer.
pub struct Question {
    /// `None` asks for the state.
    pub order: Option<Order>,
    stream: UnixStream,
}

impl Question {
    pub fn answer(mut self, text: &str) {
        // Who has gone needs no answer.
        let _ = self.stream.write_all(text.as_bytes());
    }
}

/// Listens for ever in a thread of its own.
pub fn start(directory: &'static Path, asked: impl Fn(Question) + Send + 'static) {
    keep("control", move || {
        loop {
            if let Err(error) = listen(&directory.join(SOCKET), &asked) {
                console::say(format_args!("{}: {error}", directory.join(SOCKET).display()));
            }
            thread::sleep(RETRY);
        }
    });
}

fn listen(path: &Path, asked: &impl Fn(Question)) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept()?;
        match read(&stream) {
            Ok(order) => asked(Question { order, stream }),
            Err(reason) => Question { order: None, stream }.answer(&reason),
        }
    }
}

fn read(stream: &UnixStream) -> Result<Option<Order>, String> {
    let text = |error: io::Error| format!("error: {error}\n");
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(text)?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LONGEST_LINE));
    reader.read_line(&mut line).map_err(text)?;
    match line.trim_end() {
        STATE => Ok(None),
        word => word
            .parse()
            .map(Some)
            .map_err(|_| format!("error: {word:?} is neither {STATE:?} nor an order\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn orders_and_questions_arrive_and_nonsense_is_refused() {
        let dir = std::env::temp_dir().join(format!("init-control-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(SOCKET);
        let (sender, receiver) = mpsc::channel();
        let listening = path.clone();
        thread::spawn(move || listen(&listening, &|question| sender.send(question).unwrap()));
        let ask = |line: &str| {
            let mut stream = loop {
                match UnixStream::connect(&path) {
                    Ok(stream) => break stream,
                    Err(_) => thread::yield_now(),
                }
            };
            stream.write_all(line.as_bytes()).unwrap();
            stream
        };
        for (line, order) in [("state\n", None), ("reboot\n", Some(Order::Reboot))] {
            let mut stream = ask(line);
            let question = receiver.recv().unwrap();
            assert_eq!(question.order, order);
            question.answer("ok\n");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "ok\n");
        }
        let mut answer = String::new();
        ask("halt\n").read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "error: \"halt\" is neither \"state\" nor an order\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&dir).unwrap();
    }
}
