//! What depmod wrote down, and the order of loading that follows from it. Pure.

use std::collections::{HashMap, HashSet};

/// The tables of one kernel's modules.
#[derive(Default)]
pub struct Index {
    /// File and dependencies (as files) of each module, by name.
    modules: HashMap<String, Module>,
    /// Pattern and module.
    aliases: Vec<(String, String)>,
    /// Modules to be tried before a module.
    soft_before: HashMap<String, Vec<String>>,
    builtin: HashSet<String>,
}

struct Module {
    file: String,
    dependencies: Vec<String>,
}

/// A name is one with dashes or underscores; the kernel uses underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name from its file: `kernel/fs/ext4/ext4.ko.xz` is `ext4`.
pub fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    canonical(base.split(".ko").next().unwrap_or(base))
}

impl Index {
    /// Reads the contents of modules.dep, modules.alias, modules.softdep and modules.builtin.
    pub fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut index = Self::default();
        for (file, dependencies) in dep.lines().filter_map(|line| line.split_once(':')) {
            let dependencies = dependencies.split_whitespace().map(name_of).collect();
            index.modules.insert(
                name_of(file),
                Module {
                    file: file.to_owned(),
                    dependencies,
                },
            );
        }
        for line in alias.lines() {
            if let ["alias", pattern, module] = line.split_whitespace().collect::<Vec<_>>()[..] {
                index.aliases.push((pattern.to_owned(), canonical(module)));
            }
        }
        for line in softdep.lines() {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| *word != "softdep")
                .skip(1);
            let Some(module) = words.next() else { continue };
            let before = words
                .skip_while(|word| *word != "pre:")
                .skip(1)
                .take_while(|word| *word != "post:");
            index
                .soft_before
                .entry(canonical(module))
                .or_default()
                .extend(before.map(str::to_owned));
        }
        index.builtin = builtin.lines().map(name_of).collect();
        index
    }

    /// The modules a name or a device's alias stands for. Empty: nobody knows it.
    pub fn resolve(&self, name: &str) -> Vec<String> {
        let module = canonical(name);
        if self.modules.contains_key(&module) || self.builtin.contains(&module) {
            return vec![module];
        }
        let mut found = Vec::new();
        for (pattern, module) in &self.aliases {
            let known = self.modules.contains_key(module) || self.builtin.contains(module);
            if known && !found.contains(module) && matches(pattern.as_bytes(), name.as_bytes()) {
                found.push(module.clone());
            }
        }
        found
    }

    /// The files to load for a module, in order; none for one that is built in.
    pub fn closure(&self, module: &str) -> Vec<&str> {
        let mut files = Vec::new();
        self.visit(module, &mut HashSet::new(), &mut files);
        files
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut HashSet<String>, files: &mut Vec<&'a str>) {
        let name = canonical(name);
        if !seen.insert(name.clone()) {
            return;
        }
        for before in self.soft_before.get(&name).into_iter().flatten() {
            for module in self.resolve(before) {
                self.visit(&module, seen, files);
            }
        }
        if let Some(module) = self.modules.get(&name) {
            // modules.dep names the nearest dependency first: the farthest must be loaded first.
            for dependency in module.dependencies.iter().rev() {
                self.visit(dependency, seen, files);
            }
            files.push(&module.file);
        }
    }
}

/// fnmatch(3) as aliases use it: `*`, `?` and `[a-z]`; a dash and an underscore are the same.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let same = |a: u8, b: u8| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star did not match.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match class(&pattern[p..], text[t]) {
                Some((true, length)) => Some(p + length),
                _ => None,
            },
            Some(&c) if same(c, text[t]) => Some(p + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => {
                p = next;
                t += 1;
            }
            (None, Some((after_star, begun))) => {
                star = Some((after_star, begun + 1));
                p = after_star;
                t = begun + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Whether the class at the pattern's start holds the byte, and the class's length.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let end = pattern.iter().position(|&c| c == b']')?;
    let mut members = &pattern[1..end];
    let mut held = false;
    while let Some((&first, rest)) = members.split_first() {
        if let [b'-', last, rest @ ..] = rest {
            held |= (first..=*last).contains(&byte);
            members = rest;
        } else {
            held |= first == byte;
            members = rest;
        }
    }
    Some((held, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/libcrc.ko.xz kernel/lib/crc-core.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/lib/libcrc.ko.xz: kernel/lib/crc-core.ko.xz
kernel/lib/crc-core.ko.xz:
kernel/crypto/crc32c_generic.ko:
kernel/drivers/net/virtio_net.ko.zst: kernel/net/failover.ko.zst
kernel/net/failover.ko.zst:
";
    const ALIAS: &str = "\
# Aliases extracted from modules themselves.
alias fs-ext4 ext4
alias virtio:d00000001v* virtio_net
alias crypto-crc32c crc32c_generic
alias pci:v00008086d000010[0-9A]*sv* failover
alias gone missing_module
";

    fn index() -> Index {
        Index::parse(
            DEP,
            ALIAS,
            "# comment\nsoftdep ext4 pre: crc32c_generic post: x\n",
            "kernel/drivers/virtio/virtio_pci.ko\n",
        )
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(
            index().closure("ext4"),
            [
                "kernel/crypto/crc32c_generic.ko",
                "kernel/lib/crc-core.ko.xz",
                "kernel/lib/libcrc.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz",
            ]
        );
        assert_eq!(index().closure("crc-core"), index().closure("crc_core"));
        assert_eq!(
            index().closure("virtio_pci"),
            [""; 0],
            "what is built in needs no file"
        );
    }

    #[test]
    fn names_aliases_and_devices_resolve() {
        for (name, modules) in [
            ("ext4", &["ext4"][..]),
            ("fs-ext4", &["ext4"]),
            ("crypto_crc32c", &["crc32c_generic"]),
            ("virtio:d00000001v00001AF4", &["virtio_net"]),
            ("virtio:d00000002v00001AF4", &[]),
            ("pci:v00008086d0000010Fsv0", &[]),
            ("pci:v00008086d0000105Esv0", &["failover"]),
            ("virtio-pci", &["virtio_pci"]),
            ("gone", &[]),
        ] {
            assert_eq!(index().resolve(name), modules, "{name}");
        }
    }

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[", "a", false),
            ("x[0-9a]y", "x5y", true),
            ("x[0-9a]y", "xay", true),
            ("x[0-9a]y", "xby", false),
            ("", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }
}
