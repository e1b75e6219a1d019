//! The page on the machine's screen, for who stands before it: no login, drawn anew only when something has changed.

mod screen;
mod text;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::watch;
use tracing::warn;

use crate::v1::Link;
use crate::{links, machine, status};
use screen::Screen;
use text::Facts;

const LOOK: Duration = Duration::from_secs(2);
/// The API server is asked more seldom than the machine.
const ASK_NODE: Duration = Duration::from_secs(10);

pub struct Settings {
    /// The terminal to draw on.
    pub screen: PathBuf,
    pub node_name: String,
    pub is_master: bool,
    /// The installed system that runs.
    pub slot: Option<String>,
    /// Where init listens.
    pub run_dir: PathBuf,
}

/// The cluster that the machine has joined.
#[derive(Clone)]
pub struct Membership {
    pub server: String,
    pub client: Client,
}

/// Draws for ever; without a screen it says so and ends.
pub async fn show(settings: Settings, membership: watch::Receiver<Option<Membership>>) {
    let mut screen = match Screen::open(&settings.screen) {
        Ok(screen) => screen,
        Err(error) => {
            warn!(screen = %settings.screen.display(), %error, "no page is shown");
            return;
        }
    };
    let mut drawn = Vec::new();
    let mut node = Node::default();
    loop {
        let membership = membership.borrow().clone();
        node.look(&settings.node_name, membership.as_ref()).await;
        let facts = facts(&settings, membership.as_ref(), &node).await;
        let page = text::page(&facts, screen.size());
        if page != drawn {
            if let Err(error) = screen.draw(&page) {
                warn!(screen = %settings.screen.display(), %error, "the page is not drawn");
            }
            drawn = page;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The Node object's word on the machine, as it was last heard.
#[derive(Default)]
struct Node {
    asked: Option<Instant>,
    ready: String,
}

impl Node {
    async fn look(&mut self, name: &str, membership: Option<&Membership>) {
        let Some(membership) = membership else {
            "not in a cluster yet".clone_into(&mut self.ready);
            return;
        };
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_NODE) {
            return;
        }
        self.asked = Some(Instant::now());
        self.ready = match status::ask_node(&membership.client, name).await {
            Ok(node) => text::readiness(status::ready_condition(&node)),
            Err(error) => format!("unknown: {error}"),
        };
    }
}

async fn facts(settings: &Settings, membership: Option<&Membership>, node: &Node) -> Facts {
    let (state, away) = match machine::state(&settings.run_dir).await {
        Ok(state) => (state, None),
        Err(error) => (Default::default(), Some(error.to_string())),
    };
    let status = status::status(&state, &settings.run_dir);
    let addressed = |link: &Link| !link.addresses.is_empty() && text::is_of_machine(link);
    let links = links::links().await.unwrap_or_default();
    Facts {
        node_name: settings.node_name.clone(),
        is_master: settings.is_master,
        slot: settings.slot.clone(),
        ready: node.ready.clone(),
        server: membership.map(|membership| membership.server.clone()),
        links: links.into_iter().filter(addressed).collect(),
        services: status::services(&state),
        errors: away
            .into_iter()
            .chain(status.parameter_errors.iter().cloned())
            .collect(),
        status,
    }
}
