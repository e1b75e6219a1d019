//! What the runtime promises, one case each.

mod containers;
mod crashes;
mod images;
mod lists;
mod mounts;
mod pull;
mod rights;
mod sandboxes;
mod security;
mod streams;

use crate::node::Node;
use cri_api::v1::{ContainerConfig, LinuxContainerSecurityContext};
use futures::future::LocalBoxFuture;
use std::process::Command;

type Case = for<'a> fn(&'a mut Node) -> LocalBoxFuture<'a, ()>;

macro_rules! cases {
    ($($group:ident: $($name:ident),* $(,)?;)*) => {
        pub const ALL: &[(&str, Case)] = &[$($((stringify!($name), |node| Box::pin($group::$name(node))),)*)*];
    };
}

cases!(
    images: images_are_imported_once, damaged_images_heal;
    containers: a_container_runs_and_is_logged, a_missing_program_is_a_start_error, an_unrunnable_program_is_logged, commands_run_beside_a_container, a_stop_asks_before_it_kills, the_servers_death_loses_nothing, volumes_and_pod_files_are_mounted, events_statistics_and_rotation;
    security: containers_are_confined, a_pod_can_share_its_processes, users_and_groups_follow_the_image;
    streams: exec_streams_over_websocket, exec_streams_over_spdy, attach_reaches_the_terminal_and_the_input, ports_are_forwarded;
    sandboxes: sandboxes_tell_their_state;
    mounts: mounts_propagate_as_asked, readonly_mounts_are_as_deep_as_asked;
    rights: namespaces_are_the_hosts_or_the_pods, seccomp_profiles_bind, rights_are_what_was_asked, users_are_told_and_kept_by_commands;
    lists: lists_are_filtered_and_removals_repeated, an_image_has_one_name_and_goes_once;
    crashes: crashes_leave_nothing, a_reboot_ends_what_ran;
    pull: images_of_every_shape_are_pulled, registries_are_shown_credentials, registries_are_trusted_by_their_authority,
        broken_pulls_are_taken_up_or_leave_nothing, a_full_disk_refuses_a_pull_and_nothing_else;
);

fn security_of(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn host(program: &str, args: &[&str]) {
    assert!(
        Command::new(program)
            .args(args)
            .status()
            .expect(program)
            .success(),
        "{program} {args:?}"
    );
}

/// Standard output of a command beside the container; it must succeed and say nothing else.
async fn said(node: &Node, id: &str, command: &[&str]) -> String {
    let answer = node.exec(id, command, 30).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert_eq!(
        (answer.exit_code, text(&answer.stderr)),
        (0, String::new()),
        "{command:?}"
    );
    text(&answer.stdout)
}

/// What a command that fails says.
async fn complaint(node: &Node, id: &str, command: &[&str]) -> String {
    let answer = node.exec(id, command, 30).await.unwrap();
    assert_ne!(answer.exit_code, 0, "{command:?}");
    String::from_utf8_lossy(&answer.stderr).trim().to_owned()
}

async fn sleeper(
    node: &Node,
    sandbox: &str,
    name: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> String {
    let mut config = node.script(name, "sleep 1000");
    change(&mut config);
    node.run(sandbox, config).await
}
