//! The running machine: facts and events come in from threads, services start and stop accordingly.

mod identity;

pub use identity::hosts;

use crate::{
    boot::{Boot, SERVICE_CGROUPS},
    console, control,
    disk::{self, State},
    install::{self, Outcome},
    network::{self, Snapshot},
    power::{self, Request},
    services::{
        runner::Runner,
        supervisor::{Action, Event as ServiceEvent, Supervisor},
        table::{self, Facts},
    },
    shutdown,
    sys::{clock, process, process::Exit},
    time,
    watchdog::Watchdog,
};
use node_config::{
    InstallTarget,
    machine_state::{ACCEPTED, MachineState, Order},
};
use rustix::fs::StatVfsMountFlags;
use std::{
    fs,
    net::IpAddr,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{atomic::Ordering, mpsc},
    time::Duration,
};

/// How long earlier interfaces and time servers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the machine looks at itself and reminds of what it waits for.
const LOOK: Duration = Duration::from_secs(10);

/// The same reasons are told again after this long.
const REMIND: Duration = Duration::from_secs(60);

/// A system on trial is left when it was not found good within this time.
const TRIAL: Duration = Duration::from_secs(600);

/// Below this share of free space the state disk counts as full.
const FULL_PERCENT: u64 = 5;

/// How the state disk does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    Full,
    ReadOnly,
}

enum Event {
    Exited { pid: u32, exit: Exit },
    Network(Snapshot),
    Installed(Outcome),
    State(State),
    TimeSet,
    Power(Request),
    Asked(control::Question),
}

pub struct Machine {
    boot: Boot,
    facts: Facts,
    network: Snapshot,
    supervisor: Supervisor,
    runner: Runner,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    time_servers: mpsc::Sender<Vec<IpAddr>>,
    started: Duration,
    /// When the network first was there, for the patience with time servers.
    network_since: Option<Duration>,
    waiting: Vec<String>,
    reminded: (Vec<String>, Duration),
    looked: Duration,
    health: Health,
    state: Option<State>,
    /// Until when the system on trial has to be found good.
    trial_ends: Option<Duration>,
    watchdog: Option<Watchdog>,
    /// There is nothing more to try for a watchdog.
    watchdog_settled: bool,
    /// /etc/hosts has the node's own name.
    published: bool,
    ending: Option<Request>,
}

impl Machine {
    pub fn new(boot: Boot) -> Self {
        let (sender, events) = mpsc::channel();
        let (time_servers, servers) = mpsc::channel();
        let logs = Path::new("/run/ironlet/log");
        let mut machine = Self {
            facts: Facts {
                image: boot.image.clone(),
                ..Facts::default()
            },
            runner: Runner::new(boot.reaper.clone(), Some(Path::new(SERVICE_CGROUPS)), logs),
            network: Snapshot::default(),
            supervisor: Supervisor::default(),
            events,
            sender,
            time_servers,
            started: clock::since_boot(),
            network_since: None,
            waiting: vec![],
            reminded: (vec![], Duration::ZERO),
            looked: clock::since_boot(),
            health: Health::Good,
            state: None,
            trial_ends: boot.config.trial.then_some(TRIAL),
            watchdog: None,
            watchdog_settled: !boot.config.trial,
            published: false,
            ending: None,
            boot,
        };
        let send = machine.send();
        power::start(move |request| send(Event::Power(request)));
        let send = machine.send();
        control::start(Path::new("/run/ironlet"), move |question| {
            send(Event::Asked(question))
        });
        if machine.boot.rescue.is_none() {
            let send = machine.send();
            network::start(machine.boot.config.clone(), move |snapshot| {
                send(Event::Network(snapshot))
            });
            match machine.boot.config.install.clone() {
                Some(target) => machine.install(target),
                None => machine.find_state(),
            }
            let send = machine.send();
            time::follow(servers, move || send(Event::TimeSet));
        }
        machine
    }

    fn find_state(&self) {
        let send = self.send();
        let (selector, settled) = (self.boot.config.disk.clone(), self.boot.devices_settled.clone());
        disk::start(selector, settled, self.boot.reaper.clone(), move |state| {
            send(Event::State(state))
        });
    }

    /// No service runs before it is done: the machine's state is to begin on the disk.
    fn install(&mut self, target: InstallTarget) {
        let send = self.send();
        let order = install::Order {
            target,
            wipe: self.boot.config.wipe,
            payload: self.boot.payload.take(),
        };
        install::start(order, self.boot.devices_settled.clone(), move |outcome| {
            send(Event::Installed(outcome))
        });
    }

    fn send(&self) -> impl Fn(Event) + Send + Sync + use<> {
        let sender = self.sender.clone();
        move |event| {
            // The receiver lives as long as PID 1.
            let _ = sender.send(event);
        }
    }

    /// Runs until the machine ends. A panic in here is told, and the loop goes on with the state as it is.
    pub fn run(&mut self) {
        loop {
            let ended = panic::catch_unwind(AssertUnwindSafe(|| {
                while !self.turn() {}
                self.save_for_next_boot();
                self.tend_watchdog();
                shutdown::finish(self.ending.unwrap_or(Request::PowerOff));
            }));
            if ended.is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// One event and what follows from it. True when everything has stopped.
    fn turn(&mut self) -> bool {
        let now = clock::since_boot();
        let until = [
            self.supervisor.next_change(),
            Some(self.looked + LOOK),
            self.patience_ends(now),
        ];
        let until = until.into_iter().flatten().min().unwrap_or(now);
        let event = match self.events.recv_timeout(until.saturating_sub(now)) {
            Ok(event) => self.take(event),
            Err(_) => ServiceEvent::Tick,
        };
        let now = clock::since_boot();
        let event = self.judge_trial(event, now);
        if now >= self.looked + LOOK {
            self.look(now);
        }
        self.plan_services(now);
        self.carry_out(event)
    }

    /// A restart that hangs is cut short by it; a machine that is to stay off must not be started again.
    fn tend_watchdog(&mut self) {
        if self.ending == Some(Request::PowerOff) {
            if let Some(watchdog) = self.watchdog.take() {
                watchdog.disarm();
            }
        } else if let Some(watchdog) = &mut self.watchdog {
            watchdog.pet();
        } else if !self.watchdog_settled {
            let drivers_loaded = self.boot.devices_settled.load(Ordering::Acquire);
            self.watchdog = Watchdog::start(drivers_loaded);
            self.watchdog_settled = drivers_loaded || self.watchdog.is_some();
        }
    }

    /// Leaves a system on trial that was not found good in time: the boot loader counts its tries.
    fn judge_trial(&mut self, event: ServiceEvent, now: Duration) -> ServiceEvent {
        let over = self.trial_ends.is_some_and(|end| now >= end);
        if !over || self.ending.is_some() || event != ServiceEvent::Tick {
            return event;
        }
        console::say(format_args!(
            "the system on trial was not found good within {} s: rebooting",
            TRIAL.as_secs()
        ));
        self.end(Request::Reboot)
    }

    fn patience_ends(&self, now: Duration) -> Option<Duration> {
        let ends = [Some(self.started), self.network_since]
            .into_iter()
            .flatten()
            .map(|since| since + PATIENCE);
        ends.filter(|end| *end > now).min()
    }

    fn take(&mut self, event: Event) -> ServiceEvent {
        match event {
            Event::Exited { pid, exit } => return ServiceEvent::Exited { pid, exit },
            Event::Network(snapshot) => self.network_changed(snapshot),
            Event::State(state) => self.state_mounted(&state),
            Event::TimeSet => self.facts.time_settled = true,
            Event::Installed(Outcome::Present(disk)) => {
                console::say(format_args!(
                    "INSTALL: {} has a system already: this boot goes on from its medium (ironlet.wipe=yes and the disk's name overwrite it)",
                    disk.display()
                ));
                self.find_state();
            }
            Event::Installed(Outcome::Installed(disk)) => {
                console::say(format_args!(
                    "INSTALL: {} is ready: rebooting into it",
                    disk.display()
                ));
                return self.end(Request::Reboot);
            }
            Event::Power(request) => return self.requested(request),
            Event::Asked(question) => return self.asked(question),
        }
        ServiceEvent::Tick
    }

    fn asked(&mut self, question: control::Question) -> ServiceEvent {
        let request = match question.order {
            None => {
                let state = MachineState {
                    services: self.supervisor.states(clock::since_boot()),
                    state_device: self.state.as_ref().and_then(State::device),
                    waiting: self.waiting.clone(),
                };
                question.answer(&state.to_string());
                return ServiceEvent::Tick;
            }
            Some(Order::Good) => {
                if self.trial_ends.take().is_some() {
                    console::say("the system on trial is good: it stays");
                }
                self.watchdog_settled = true;
                if let Some(watchdog) = self.watchdog.take() {
                    watchdog.disarm();
                }
                question.answer(ACCEPTED);
                return ServiceEvent::Tick;
            }
            Some(Order::PowerOff) => Request::PowerOff,
            Some(Order::Reboot) => Request::Reboot,
            Some(Order::Reset) => Request::Reset,
        };
        question.answer(ACCEPTED);
        self.requested(request)
    }

    fn requested(&mut self, request: Request) -> ServiceEvent {
        if self.ending.is_some() {
            return ServiceEvent::Tick;
        }
        console::say(match request {
            Request::PowerOff => "power off requested: stopping services",
            Request::Reboot => "reboot requested: stopping services",
            Request::Reset => "reset requested: stopping services; the state disk will be emptied",
        });
        self.end(request)
    }

    fn end(&mut self, request: Request) -> ServiceEvent {
        self.ending = Some(request);
        console::leave_screen(false);
        ServiceEvent::StopAll
    }

    fn network_changed(&mut self, snapshot: Snapshot) {
        if let Err(error) = identity::write_atomically(
            Path::new("/etc/resolv.conf"),
            &snapshot.resolv_conf(&self.boot.config),
        ) {
            console::say(format_args!("/etc/resolv.conf: {error}"));
        }
        if snapshot.ntp_servers() != self.network.ntp_servers() {
            // The receiving thread lives as long as PID 1.
            let _ = self.time_servers.send(snapshot.ntp_servers());
        }
        self.network = snapshot;
    }

    fn state_mounted(&mut self, state: &State) {
        match state {
            State::Disk(device) => console::say(format_args!(
                "state disk: {} is {}",
                device.display(),
                disk::MOUNT_POINT
            )),
            State::Memory => {}
        }
        self.state = Some(state.clone());
        for error in identity::restore(&self.boot.config) {
            console::say(error);
        }
        self.facts.joined = Path::new(table::STATE).join("agent/kubeconfig").exists();
        self.facts.state_ready = true;
    }

    /// Derives what is still unknown, and takes on the services that can run with it.
    fn plan_services(&mut self, now: Duration) {
        if let Some(reason) = &self.boot.rescue {
            self.waiting = vec![format!("repair: boot failed at {reason}")];
            return;
        }
        let patient = now < self.started + PATIENCE && !self.network.complete();
        if self.facts.node_ip.is_none() {
            self.facts.node_ip = self.network.node_ip(&self.boot.config, patient);
        }
        if self.facts.hostname.is_none() && self.facts.state_ready {
            self.decide_hostname(patient);
        }
        if let (false, Some(ip), Some(name)) = (self.published, self.facts.node_ip, &self.facts.hostname) {
            self.published = true;
            if let Err(error) = identity::publish(ip, name) {
                console::say(format_args!("/etc/hosts: {error}"));
            }
        }
        if !self.facts.time_settled && self.facts.node_ip.is_some() {
            self.settle_time(now);
        }
        self.facts.image.kubeconfig_port = Path::new(table::KUBECONFIG_PORT).exists();
        let plan = table::plan(&self.boot.config, &self.facts);
        self.supervisor.add(plan.services);
        self.waiting = plan.waiting;
    }

    fn decide_hostname(&mut self, patient: bool) {
        let networks = self.network.hostname().filter(|_| !patient);
        let Some(name) = identity::hostname(&self.boot.config, networks) else {
            return;
        };
        console::say(format_args!("host name {name}"));
        for error in identity::assume(&name) {
            console::say(error);
        }
        self.facts.hostname = Some(name);
    }

    /// The time is settled when it was set, when nobody can be asked, or when nobody answers.
    fn settle_time(&mut self, now: Duration) {
        let since = *self.network_since.get_or_insert(now);
        if self.network.ntp_servers().is_empty() && self.network.complete() {
            console::say(
                "time: the network names no time server (DHCP option 42, ip=): the battery clock's time stands",
            );
            self.facts.time_settled = true;
        } else if now >= since + PATIENCE {
            console::say("time: no server has answered yet: going on with the battery clock's time");
            self.facts.time_settled = true;
        }
    }

    /// Reminds of what is missing and looks at the state disk.
    fn look(&mut self, now: Duration) {
        self.looked = now;
        self.tend_watchdog();
        let waiting = self.waiting.iter().map(|reason| format!("waiting for {reason}"));
        let missing = self
            .network
            .missing
            .iter()
            .map(|name| format!("network: {name} is not there"));
        let reasons: Vec<String> = waiting.chain(missing).collect();
        if reasons != self.reminded.0 || now >= self.reminded.1 + REMIND {
            reasons.iter().for_each(console::say);
            self.reminded = (reasons, now);
        }
        if self.facts.state_ready {
            self.look_at_state();
        }
    }

    fn look_at_state(&mut self) {
        let Ok(space) = rustix::fs::statvfs(disk::MOUNT_POINT) else {
            return;
        };
        let free = (space.f_bavail * space.f_frsize) >> 20;
        let health = if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
            Health::ReadOnly
        } else if space.f_bavail * 100 < space.f_blocks * FULL_PERCENT {
            Health::Full
        } else {
            Health::Good
        };
        if health != self.health {
            console::say(match health {
                Health::Good => format!("{} has room again ({free} MiB free)", disk::MOUNT_POINT),
                Health::Full => format!(
                    "{} is FULL: services may fail ({free} MiB free)",
                    disk::MOUNT_POINT
                ),
                Health::ReadOnly => format!("{} is READ-ONLY: the disk has errors", disk::MOUNT_POINT),
            });
            self.health = health;
        }
    }

    /// Lets the supervisor decide and does what it says; what comes of that is an event in turn.
    fn carry_out(&mut self, event: ServiceEvent) -> bool {
        let mut events = vec![event];
        let mut stopped = false;
        while let Some(event) = events.pop() {
            for action in self.supervisor.step(event, clock::since_boot()) {
                match action {
                    Action::Start(name) => events.insert(0, self.start(name)),
                    Action::Terminate(pid) => process::signal(pid, libc::SIGTERM),
                    Action::Kill(pid) => process::signal(pid, libc::SIGKILL),
                    Action::Report(text) => console::say(text),
                    Action::AllStopped => stopped = true,
                }
            }
        }
        stopped
    }

    fn start(&mut self, name: String) -> ServiceEvent {
        let send = self.send();
        let exited = move |pid, exit| send(Event::Exited { pid, exit });
        let result = match self.supervisor.service(&name) {
            Some(service) => self.runner.start(service, exited),
            None => return ServiceEvent::Tick,
        };
        match result {
            Ok(pid) => {
                console::say(format_args!(
                    "{name}: started as {pid}, {:.3}s after kernel start",
                    clock::since_boot().as_secs_f64()
                ));
                if name == table::NODE_API && self.facts.image.screen {
                    console::leave_screen(true);
                }
                ServiceEvent::Started { name, pid }
            }
            Err(error) => ServiceEvent::StartFailed {
                name,
                error: error.to_string(),
            },
        }
    }

    fn save_for_next_boot(&self) {
        if self.facts.state_ready {
            for error in identity::save() {
                console::say(error);
            }
        }
        // Files of the last minutes should not wait for the final unmount.
        if let Ok(dir) = fs::File::open(disk::MOUNT_POINT) {
            let _ = rustix::fs::syncfs(dir);
        }
    }
}
