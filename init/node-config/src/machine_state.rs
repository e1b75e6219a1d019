//! What PID 1 says of the machine to who asks on its socket, as text: one fact a line, fields between tabs.

use std::{fmt, str::FromStr};

/// Where PID 1 listens. It takes one line: `state`, or one of [`Order`]'s words.
pub const SOCKET: &str = "init.sock";

/// What may be asked of PID 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    PowerOff,
    Reboot,
    /// Reboot, with the state disk emptied on the way.
    Reset,
    /// The system on trial is good: it need not be left again.
    Good,
}

const WORDS: [(&str, Order); 4] = [
    ("power-off", Order::PowerOff),
    ("reboot", Order::Reboot),
    ("reset", Order::Reset),
    ("good", Order::Good),
];

/// The answer to an order that is carried out.
pub const ACCEPTED: &str = "ok\n";
/// The word that asks for a [`MachineState`].
pub const STATE: &str = "state";

impl FromStr for Order {
    type Err = super::types::Malformed;
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, order)| *order).ok_or(super::types::Malformed)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(_, order)| order == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    pub services: Vec<ServiceState>,
    /// The device that keeps the state; none while it is memory or not there yet.
    pub state_device: Option<String>,
    /// Why services do not run yet.
    pub waiting: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    pub name: String,
    pub state: String,
    pub pid: Option<u32>,
    /// How long it has been running.
    pub seconds: u64,
    /// In a row.
    pub failures: u32,
    pub last_end: String,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: &str| text.replace(['\t', '\n'], " ");
        for service in &self.services {
            let pid = service.pid.map(|pid| pid.to_string()).unwrap_or_default();
            writeln!(
                f,
                "service\t{}\t{}\t{pid}\t{}\t{}\t{}",
                service.name,
                service.state,
                service.seconds,
                service.failures,
                plain(&service.last_end)
            )?;
        }
        if let Some(device) = &self.state_device {
            writeln!(f, "state-device\t{}", plain(device))?;
        }
        for reason in &self.waiting {
            writeln!(f, "waiting\t{}", plain(reason))?;
        }
        Ok(())
    }
}

impl FromStr for MachineState {
    type Err = super::types::Malformed;

    /// Kinds of facts that a later version adds are passed over.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut state = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields.as_slice() {
                ["service", name, in_state, pid, seconds, failures, last_end] => {
                    let number = |text: &str| text.parse::<u64>().map_err(|_| super::types::Malformed);
                    state.services.push(ServiceState {
                        name: (*name).to_owned(),
                        state: (*in_state).to_owned(),
                        pid: pid.parse().ok(),
                        seconds: number(seconds)?,
                        failures: failures.parse().map_err(|_| super::types::Malformed)?,
                        last_end: (*last_end).to_owned(),
                    });
                }
                ["service", ..] => return Err(super::types::Malformed),
                ["state-device", device] => state.state_device = Some((*device).to_owned()),
                ["waiting", reason] => state.waiting.push((*reason).to_owned()),
                _ => {}
            }
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let state = MachineState {
            services: vec![
                ServiceState {
                    name: "agent".into(),
                    state: "running".into(),
                    pid: Some(71),
                    seconds: 5,
                    failures: 1,
                    last_end: "exit status 1;\tmore".into(),
                },
                ServiceState {
                    name: "cri".into(),
                    state: "waiting".into(),
                    ..ServiceState::default()
                },
            ],
            state_device: Some("/dev/sda3".into()),
            waiting: vec!["an IP address".into()],
        };
        let mut expected = state.clone();
        expected.services[0].last_end = "exit status 1; more".into();
        assert_eq!(state.to_string().parse(), Ok(expected));
        assert_eq!("later\tfact\n".parse(), Ok(MachineState::default()));
        assert!("service\tx\n".parse::<MachineState>().is_err());
    }

    #[test]
    fn orders_are_words() {
        for (word, order) in WORDS {
            assert_eq!((word.parse(), order.to_string()), (Ok(order), word.to_owned()));
        }
        assert!("halt".parse::<Order>().is_err());
    }
}
