//! Which port a frame leaves by: a learning switch (IEEE 802.1D without the spanning tree; there are no loops). Pure.

use std::collections::BTreeMap;

pub type PortId = u64;
type Address = [u8; 6];

#[derive(Debug, PartialEq, Eq)]
pub enum Forward {
    Drop,
    To(PortId),
    Flood,
}

#[derive(Debug, Default)]
pub struct Switch {
    ports: BTreeMap<Address, PortId>,
}

/// The bit of a destination that means a group, broadcast included.
const GROUP: u8 = 1;

impl Switch {
    /// Learns where the sender is and says where the frame goes.
    pub fn forward(&mut self, from: PortId, frame: &[u8]) -> Forward {
        let (Some(Ok(to)), Some(Ok(source))) = (
            frame.get(0..6).map(Address::try_from),
            frame.get(6..12).map(Address::try_from),
        ) else {
            return Forward::Drop;
        };
        if source[0] & GROUP == 0 {
            self.ports.insert(source, from);
        }
        match self.ports.get(&to) {
            Some(port) if *port == from => Forward::Drop,
            Some(port) => Forward::To(*port),
            None => Forward::Flood,
        }
    }

    /// Forgets a port that is gone.
    pub fn forget(&mut self, port: PortId) {
        self.ports.retain(|_, known| *known != port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learns_floods_and_forgets() {
        let frame = |to: u8, from: u8| vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
        let broadcast = [[0xff; 6].as_slice(), &[2, 0, 0, 0, 0, 1]].concat();
        let mut switch = Switch::default();
        assert_eq!(switch.forward(1, &frame(2, 1)), Forward::Flood);
        assert_eq!(switch.forward(2, &frame(1, 2)), Forward::To(1));
        assert_eq!(switch.forward(1, &frame(2, 1)), Forward::To(2));
        assert_eq!(switch.forward(1, &broadcast), Forward::Flood);
        assert_eq!(
            switch.forward(2, &frame(2, 3)),
            Forward::Drop,
            "the destination is on the port it came from"
        );
        assert_eq!(
            switch.forward(3, &frame(1, 2)),
            Forward::To(1),
            "a machine may move to another port"
        );
        assert_eq!(switch.forward(1, &frame(2, 1)), Forward::To(3));
        switch.forget(3);
        assert_eq!(switch.forward(1, &frame(2, 1)), Forward::Flood);
        assert_eq!(switch.forward(1, &[1, 2, 3]), Forward::Drop);
    }
}
