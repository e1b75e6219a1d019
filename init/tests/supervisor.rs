//! PID 1's promises, kept in a PID namespace of its own: it reaps orphans, restarts what ends, stops in order,
//! and outlives its own threads' panics.
//!
//! The test starts itself again under `unshare` and there is PID 1, with init's real supervisor,
//! runner and reaper around shell scripts as services.

use init::{
    console,
    services::{
        Kind, Service,
        reaper::Reaper,
        runner::Runner,
        supervisor::{Action, Event, Supervisor},
    },
    sys::{clock, process},
    thread::{keep, report_panics},
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::mpsc,
    time::Duration,
};

/// Long enough for the slowest machine; nothing waits for it unless a promise is broken.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("supervisor: test");
        return ExitCode::SUCCESS;
    }
    if let Some(dir) = env::var_os("INIT_TEST_DIR") {
        as_pid_1(Path::new(&dir));
        return ExitCode::SUCCESS;
    }
    let dir = env::temp_dir().join(format!("init-supervisor-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a temporary directory");
    // Who is not root becomes root in a user namespace.
    let user: &[&str] = if rustix::process::geteuid().is_root() {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let status = Command::new("unshare")
        .args(user)
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(env::current_exe().expect("the test's own path"))
        .env("INIT_TEST_DIR", &dir)
        .status()
        .expect("unshare (util-linux)");
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    println!("{log}");
    assert!(status.success(), "PID 1 ended with {status}");
    assert!(
        log.ends_with("all promises kept\n"),
        "PID 1 did not get to its end"
    );
    fs::remove_dir_all(&dir).expect("remove the temporary directory");
    ExitCode::SUCCESS
}

fn service(name: &str, script: &str, kind: Kind, after: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        program: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        kind,
        after: after.iter().map(|&name| name.to_owned()).collect(),
        stop_deadline: Duration::from_secs(1),
        memory_min: 0,
        oom_score_adj: 0,
    }
}

/// init's loop without a machine around it.
struct Loop {
    dir: PathBuf,
    supervisor: Supervisor,
    runner: Runner,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    /// What the supervisor reported and started, in order.
    story: Vec<String>,
    stopped: bool,
}

impl Loop {
    fn step(&mut self, event: Event) {
        for action in self.supervisor.step(event, clock::since_boot()) {
            match action {
                Action::Start(name) => {
                    let sender = self.sender.clone();
                    let service = self.supervisor.service(&name).expect("a known service").clone();
                    let exited =
                        move |pid, exit| sender.send(Event::Exited { pid, exit }).expect("the loop lives");
                    let pid = self.runner.start(&service, exited).expect("sh starts");
                    self.story.push(format!("{name}: started"));
                    self.step(Event::Started { name, pid });
                }
                Action::Terminate(pid) => process::signal(pid, 15),
                Action::Kill(pid) => process::signal(pid, 9),
                Action::Report(text) => self.story.push(text),
                Action::AllStopped => self.stopped = true,
            }
        }
    }

    /// Runs until the condition holds.
    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = clock::since_boot() + LIMIT;
        while !done(self) {
            assert!(
                clock::since_boot() < deadline,
                "{what} did not happen: {:#?}",
                self.story
            );
            let event = self
                .events
                .recv_timeout(Duration::from_millis(20))
                .unwrap_or(Event::Tick);
            self.step(event);
        }
        self.log(what);
    }

    fn log(&self, line: &str) {
        let path = self.dir.join("log");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, format!("{before}{line}\n")).expect("write the log");
    }

    fn count(&self, part: &str) -> usize {
        self.story.iter().filter(|line| line.contains(part)).count()
    }
}

fn as_pid_1(dir: &Path) {
    assert_eq!(std::process::id(), 1, "this must be PID 1");
    report_panics();
    let reaper = Reaper::default();
    let reaping = reaper.clone();
    keep("reaper", move || reaping.reap_forever());
    let (sender, events) = mpsc::channel();
    let mut machine = Loop {
        dir: dir.to_owned(),
        supervisor: Supervisor::default(),
        runner: Runner::new(reaper.clone(), None, dir),
        sender,
        events,
        story: vec![],
        stopped: false,
    };
    let orphan = dir.join("orphan");
    let prepared = dir.join("prepared");
    machine.supervisor.add(vec![
        service(
            "prepare",
            &format!("echo preparing; touch {}", prepared.display()),
            Kind::Oneshot,
            &[],
        ),
        // Leaves a child behind that outlives it, and so becomes PID 1's.
        service(
            "parent",
            &format!(
                "test -e {} || exit 9; (sleep 0.2; touch {}) & exit 3",
                prepared.display(),
                orphan.display()
            ),
            Kind::Daemon,
            &["prepare"],
        ),
        service(
            "steady",
            "trap 'exit 0' TERM; while :; do sleep 0.05; done",
            Kind::Daemon,
            &["prepare"],
        ),
        service(
            "stubborn",
            "trap '' TERM; while :; do sleep 0.05; done",
            Kind::Daemon,
            &["steady"],
        ),
    ]);
    machine.step(Event::Tick);

    machine.run_until("a daemon that ends is started again, later each time", |m| {
        m.count("parent: started") >= 3
    });
    let pauses: Vec<&str> = machine
        .story
        .iter()
        .filter_map(|line| line.strip_prefix("parent: exited with status 3; "))
        .collect();
    assert_eq!(
        pauses[..2],
        [
            "starting again in 0.5 s (failure 1)",
            "starting again in 1.0 s (failure 2)"
        ]
    );
    assert_eq!(
        machine.count("prepare: started"),
        1,
        "a oneshot that succeeded must not run again"
    );
    assert!(
        machine.story.iter().position(|line| line == "prepare: done")
            < machine.story.iter().position(|line| line == "parent: started")
    );

    machine.run_until("orphans lived on, ended and were reaped", |_| {
        orphan.exists() && zombies() == 0
    });

    let (panicked, panics) = mpsc::channel();
    let mut first = true;
    keep("careless", move || {
        panicked.send(()).expect("the loop lives");
        if std::mem::take(&mut first) {
            panic!("on purpose");
        }
    });
    for _ in 0..2 {
        panics
            .recv_timeout(LIMIT)
            .expect("a thread that panicked is started again");
    }
    machine.log("a panicking thread did not take PID 1 along");

    let mut program = Command::new("/bin/sh");
    program.args(["-c", "echo seen; exit 4"]);
    let (exit, text) = reaper.run(program).expect("sh runs");
    assert_eq!((exit, text.as_str()), (process::Exit::Code(4), "seen\n"));
    let missing = reaper.run(Command::new("/no/such/program"));
    assert!(missing.is_err(), "a program that is missing is an error");
    machine.log("programs run to their end beside the services");

    machine.step(Event::StopAll);
    machine.run_until("everything stopped", |m| m.stopped);
    let ends: Vec<&String> = machine
        .story
        .iter()
        .filter(|line| line.contains("stop"))
        .collect();
    assert_eq!(
        ends,
        [
            "stubborn: stopping",
            "stubborn: not stopped after 1 s: killed",
            "stubborn: stopped",
            "steady: stopping",
            "steady: stopped"
        ]
    );
    let log = fs::read_to_string(dir.join("prepare")).expect("the service's ring");
    assert_eq!(log, "preparing\n");
    console::flush(Duration::ZERO);
    machine.log("all promises kept");
}

/// Ended processes that nobody has waited for.
fn zombies() -> usize {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('Z'))
        })
        .count()
}
