//! Which kernel modules an image holds: the wanted names closed over modules.dep and modules.softdep.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModuleError {
    #[error("the kernel has no module {0}, neither loadable nor built in")]
    Unknown(String),
    #[error("modules.dep names {0} as a dependency but has no entry for it")]
    Dangling(String),
}

/// What `depmod` and the kernel package say about modules.
#[derive(Debug, Default)]
pub struct Index {
    /// Name → (path, paths it depends on).
    loadable: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
    /// Name → names to load before it.
    soft: BTreeMap<String, Vec<String>>,
}

/// A module's name as the kernel knows it: file name without suffix, `-` as `_`.
pub fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    stem.replace('-', "_")
}

impl Index {
    /// From the texts of modules.dep, modules.builtin and modules.softdep.
    pub fn parse(dep: &str, builtin: &str, softdep: &str) -> Self {
        let loadable = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (name(path), (path.to_owned(), needs))
            })
            .collect();
        let mut soft: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let before = words
                .skip_while(|word| *word != "pre:")
                .skip(1)
                .take_while(|word| *word != "post:");
            soft.entry(name(module)).or_default().extend(before.map(name));
        }
        Self {
            loadable,
            builtin: builtin.lines().map(name).collect(),
            soft,
        }
    }

    /// Paths of the wanted modules and of everything they need, dependencies first. A soft dependency that the
    /// kernel does not have is left out, as modprobe does.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for module in wanted {
            let module = name(module);
            if self.loadable.contains_key(&module) {
                self.visit(&module, &mut seen, &mut order)?;
            } else if !self.builtin.contains(&module) {
                return Err(ModuleError::Unknown(module));
            }
        }
        Ok(order)
    }

    fn visit(
        &self,
        module: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        if !seen.insert(module.to_owned()) {
            return Ok(());
        }
        let (path, needs) = self
            .loadable
            .get(module)
            .ok_or_else(|| ModuleError::Dangling(module.to_owned()))?;
        for soft in self
            .soft
            .get(module)
            .into_iter()
            .flatten()
            .filter(|soft| self.loadable.contains_key(*soft))
        {
            self.visit(soft, seen, order)?;
        }
        // modules.dep lists the nearest dependency first.
        for need in needs.iter().rev() {
            self.visit(&name(need), seen, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
        kernel/fs/jbd2/jbd2.ko.xz:\n\
        kernel/lib/crc16.ko.xz:\n\
        kernel/net/xfrm-user.ko.xz: kernel/lib/gone.ko.xz\n\
        kernel/lib/libcrc32c.ko.xz:\n\
        kernel/crypto/crc32c_generic.ko.xz:\n";
    const SOFT: &str = "# comment\nsoftdep libcrc32c pre: crc32c-generic crc32c-absent post: jbd2\n";

    fn index() -> Index {
        Index::parse(DEP, "kernel/drivers/virtio/virtio_pci.ko\n", SOFT)
    }

    #[test]
    fn names() {
        for (path, want) in [
            ("kernel/a/virtio-rng.ko.xz", "virtio_rng"),
            ("nf_nat.ko", "nf_nat"),
            ("xt_mark", "xt_mark"),
        ] {
            assert_eq!(name(path), want);
        }
    }

    #[test]
    fn closures() {
        let table: [(&[&str], Result<Vec<&str>, ModuleError>); 5] = [
            (
                &["ext4"],
                Ok(vec![
                    "kernel/lib/crc16.ko.xz",
                    "kernel/fs/jbd2/jbd2.ko.xz",
                    "kernel/fs/ext4/ext4.ko.xz",
                ]),
            ),
            (
                &["libcrc32c"],
                Ok(vec![
                    "kernel/crypto/crc32c_generic.ko.xz",
                    "kernel/lib/libcrc32c.ko.xz",
                ]),
            ),
            (&["virtio_pci"], Ok(vec![])),
            (&["nonesuch"], Err(ModuleError::Unknown("nonesuch".into()))),
            (&["xfrm-user"], Err(ModuleError::Dangling("gone".into()))),
        ];
        for (wanted, want) in table {
            let want = want.map(|paths| paths.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(index().closure(wanted), want, "{wanted:?}");
        }
    }
}
