//! Who a container runs as: the pod's and the image's wishes resolved in the image's own files.

use cri_api::v1;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("no users found: unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("user group is specified without user")]
    GroupWithoutUser,
    #[error("{0} is not a valid user or group ID")]
    OutOfRange(i64),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, without duplicates, with the primary group.
    pub groups: Vec<u32>,
    pub home: Option<String>,
}

/// An image's user database.
#[derive(Debug, Default)]
pub struct Database {
    pub passwd: String,
    pub group: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

impl Database {
    /// Reads the files inside a root file system; links there cannot lead out of it.
    pub fn read(rootfs: &Path) -> io::Result<Self> {
        Ok(Self {
            passwd: read_in(rootfs, "etc/passwd")?,
            group: read_in(rootfs, "etc/group")?,
        })
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, ..] = fields[..] else {
                return None;
            };
            Some(Account {
                name,
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members, ..] = fields[..] else {
                return None;
            };
            Some(Group {
                name,
                gid: gid.parse().ok()?,
                members: members.split(',').filter(|m| !m.is_empty()).collect(),
            })
        })
    }
}

/// The user of a container: `run_as_user` or `run_as_username`, else the image's `User`, else root.
pub fn resolve(
    context: Option<&v1::LinuxContainerSecurityContext>,
    image_user: &str,
    database: &Database,
) -> Result<User, UserError> {
    let empty = v1::LinuxContainerSecurityContext::default();
    let context = context.unwrap_or(&empty);
    let asked = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => String::new(),
        (None, name) => name.to_owned(),
    };
    if asked.is_empty() && context.run_as_group.is_some() {
        return Err(UserError::GroupWithoutUser);
    }
    let text = if asked.is_empty() { image_user } else { &asked };
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let account = match user.parse::<u32>() {
        Ok(uid) => database.accounts().find(|account| account.uid == uid),
        Err(_) if user.is_empty() => database.accounts().find(|account| account.uid == 0),
        Err(_) => Some(
            database
                .accounts()
                .find(|account| account.name == user)
                .ok_or_else(|| UserError::NoUser(user.to_owned()))?,
        ),
    };
    let uid = account
        .as_ref()
        .map_or_else(|| user.parse().unwrap_or(0), |account| account.uid);
    let gid = match (&context.run_as_group, group) {
        (Some(gid), _) => id(gid.value)?,
        (None, Some(group)) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => database
                .groups()
                .find(|entry| entry.name == group)
                .map(|entry| entry.gid)
                .ok_or_else(|| UserError::NoGroup(group.to_owned()))?,
        },
        (None, None) => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = vec![gid];
    for group in &context.supplemental_groups {
        groups.push(id(*group)?);
    }
    if context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge
        && let Some(account) = &account
    {
        groups.extend(
            database
                .groups()
                .filter(|g| g.members.contains(&account.name))
                .map(|g| g.gid),
        );
    }
    groups.sort_unstable();
    groups.dedup();
    let home = account
        .map(|account| account.home.to_owned())
        .filter(|home| !home.is_empty());
    Ok(User {
        uid,
        gid,
        groups,
        home,
    })
}

fn id(value: i64) -> Result<u32, UserError> {
    u32::try_from(value).map_err(|_| UserError::OutOfRange(value))
}

fn read_in(rootfs: &Path, path: &str) -> io::Result<String> {
    let root = rustix::fs::open(
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(file) => {
            let mut bytes = Vec::new();
            File::from(file).take(4 << 20).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n".into(),
            group: "root:x:0:\napp:x:1001:\nvideo:x:44:app,other\n".into(),
        }
    }

    fn context(
        user: Option<i64>,
        name: &str,
        group: Option<i64>,
        groups: &[i64],
    ) -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext {
            run_as_user: user.map(|value| v1::Int64Value { value }),
            run_as_username: name.into(),
            run_as_group: group.map(|value| v1::Int64Value { value }),
            supplemental_groups: groups.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn users_resolve_as_the_pod_then_the_image_asks() {
        for (context, image, uid, gid, groups) in [
            (context(None, "", None, &[]), "", 0, 0, vec![0]),
            (context(None, "", None, &[]), "app", 1000, 1001, vec![44, 1001]),
            (context(None, "", None, &[]), "1000:44", 1000, 44, vec![44]),
            (context(None, "", None, &[]), "app:video", 1000, 44, vec![44]),
            (context(None, "", None, &[]), "4242", 4242, 0, vec![0]),
            (
                context(Some(1000), "", None, &[7]),
                "root",
                1000,
                1001,
                vec![7, 44, 1001],
            ),
            (
                context(Some(99), "", Some(98), &[7, 7]),
                "app",
                99,
                98,
                vec![7, 98],
            ),
            (context(None, "app", None, &[]), "", 1000, 1001, vec![44, 1001]),
        ] {
            let user = resolve(Some(&context), image, &database()).unwrap();
            assert_eq!(
                (user.uid, user.gid, user.groups),
                (uid, gid, groups),
                "{context:?} {image}"
            );
        }
        let strict = v1::LinuxContainerSecurityContext {
            supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict as i32,
            ..context(Some(1000), "", None, &[7])
        };
        assert_eq!(resolve(Some(&strict), "", &database()).unwrap().groups, [7, 1001]);
    }

    #[test]
    fn unknown_names_are_errors() {
        assert_eq!(
            resolve(None, "nobody", &database()),
            Err(UserError::NoUser("nobody".into()))
        );
        assert_eq!(
            resolve(None, "app:none", &database()),
            Err(UserError::NoGroup("none".into()))
        );
        let group_only = context(None, "", Some(5), &[]);
        assert_eq!(
            resolve(Some(&group_only), "", &database()),
            Err(UserError::GroupWithoutUser)
        );
    }
}
