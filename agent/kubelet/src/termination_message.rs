//! The last words of a container: its termination message file, or the end of its log.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::runtime_pod::{ContainerState, ObservedContainer};

/// Upstream's `MaxContainerTerminationMessageLength` and the limits of the fallback to logs.
const MAX_BYTES: usize = 4096;
const MAX_LOG_BYTES: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

pub fn read(container: &ObservedContainer) -> Option<String> {
    if container.state != ContainerState::Exited {
        return None;
    }
    let written = (!container.message_file.is_empty())
        .then(|| file(Path::new(&container.message_file)))
        .flatten();
    written.or_else(|| {
        (container.message_from_logs && container.exit_code != 0)
            .then(|| log_tail(Path::new(&container.log_path)))?
    })
}

/// The message that the pod's status already gives for this container.
pub fn reported(pod: &Pod, id: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let states = lists
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|container| [&container.state, &container.last_state]);
    let terminated = states.flatten().filter_map(|state| state.terminated.as_ref());
    let of_container = |given: &str| given.split_once("://").is_some_and(|(_, given)| given == id);
    terminated
        .filter(|run| run.container_id.as_deref().is_some_and(of_container))
        .find_map(|run| run.message.clone())
}

fn file(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(MAX_BYTES as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
}

fn log_tail(path: &Path) -> Option<String> {
    let mut log = fs::File::open(path).ok()?;
    // Each line carries a prefix of about 40 bytes that does not count.
    let window = MAX_LOG_BYTES * 4;
    let start = log.metadata().ok()?.len().saturating_sub(window);
    log.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<(&str, &str)> = text
        .lines()
        .skip(usize::from(start > 0))
        .filter_map(content)
        .collect();
    let joined = lines[lines.len().saturating_sub(MAX_LOG_LINES)..]
        .iter()
        .flat_map(|(line, end)| [*line, *end]);
    let joined = joined.collect::<String>();
    let excess = joined.len().saturating_sub(MAX_LOG_BYTES as usize);
    let cut = (excess..=joined.len()).find(|at| joined.is_char_boundary(*at))?;
    Some(joined[cut..].to_owned()).filter(|text| !text.is_empty())
}

/// The text of `TIMESTAMP STREAM TAG TEXT` and what ends it: nothing when the tag says that the line goes on.
fn content(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(4, ' ').skip(2);
    let partial = parts.next()?.split(':').any(|tag| tag == "P");
    Some((parts.next()?, if partial { "" } else { "\n" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_file_first_then_the_log() {
        let dir = crate::volumes::testing::TempDir::new("termination");
        let message = dir.path().join("message");
        let log = dir.path().join("0.log");
        fs::write(
            &log,
            "2026-01-01T00:00:00Z stderr F one\n2026-01-01T00:00:00Z stderr F two\n",
        )
        .unwrap();
        let mut container = ObservedContainer {
            state: ContainerState::Exited,
            exit_code: 1,
            log_path: log.display().to_string(),
            message_file: message.display().to_string(),
            message_from_logs: true,
            ..Default::default()
        };
        assert_eq!(read(&container).as_deref(), Some("one\ntwo\n"));
        fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout P DO\n2026-01-01T00:00:00Z stdout P NE\n",
        )
        .unwrap();
        assert_eq!(read(&container).as_deref(), Some("DONE"));
        fs::write(&message, "bye").unwrap();
        assert_eq!(read(&container).as_deref(), Some("bye"));
        fs::write(&message, "").unwrap();
        container.exit_code = 0;
        assert_eq!(read(&container), None);
    }
    #[test]
    fn a_reported_message_outlives_its_file() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "containerID": "ironlet://abc", "message": "bye"}},
        }]}}))
        .unwrap();
        assert_eq!(reported(&pod, "abc").as_deref(), Some("bye"));
        assert_eq!(reported(&pod, "ab"), None);
    }
}
