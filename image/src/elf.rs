//! What a dynamic executable asks the loader for, so that the image holds the libraries it needs and no others.

use object::{
    Endianness,
    elf::{DT_NEEDED, FileHeader64},
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("{path}: not a readable ELF file: {error}")]
    Parse { path: String, error: object::Error },
    #[error("{path} needs {library}, which no package of the table supplies")]
    Missing { path: String, library: String },
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// PT_INTERP: the dynamic loader's path.
    pub loader: Option<String>,
    /// DT_NEEDED, in order.
    pub libraries: Vec<String>,
}

/// Reads PT_INTERP and DT_NEEDED; a file that is not ELF needs nothing.
pub fn needs(path: &str, data: &[u8]) -> Result<Needs, ElfError> {
    if !data.starts_with(b"\x7fELF") {
        return Ok(Needs::default());
    }
    parse(data).map_err(|error| ElfError::Parse {
        path: path.to_owned(),
        error,
    })
}

fn parse(data: &[u8]) -> object::Result<Needs> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, data)? {
        if let Some(interpreter) = segment.interpreter(endian, data)? {
            needs.loader = Some(String::from_utf8_lossy(interpreter).into_owned());
        }
    }
    let sections = header.sections(endian, data)?;
    if let Some((entries, link)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for entry in entries.iter().filter(|entry| entry.d_tag(endian) == DT_NEEDED) {
            let name = entry.string(endian, strings)?;
            needs.libraries.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(needs)
}

/// Names of all libraries that `roots` (path, content) need, transitively. `available` maps a library's name to its content.
pub fn closure<'a>(
    roots: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    available: &BTreeMap<String, Vec<u8>>,
) -> Result<BTreeSet<String>, ElfError> {
    let mut found = BTreeSet::new();
    let mut queue: Vec<(String, &[u8])> = roots
        .into_iter()
        .map(|(path, data)| (path.to_owned(), data))
        .collect();
    while let Some((path, data)) = queue.pop() {
        let needs = needs(&path, data)?;
        let loader = needs
            .loader
            .iter()
            .filter_map(|loader| loader.rsplit('/').next().map(str::to_owned));
        for library in needs.libraries.iter().cloned().chain(loader) {
            if found.contains(&library) {
                continue;
            }
            let Some(content) = available.get(&library) else {
                return Err(ElfError::Missing { path, library });
            };
            queue.push((library.clone(), content));
            found.insert(library);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_needs_nothing_and_garbage_is_named() {
        assert_eq!(needs("a.sh", b"#!/bin/sh").unwrap(), Needs::default());
        let error = needs("usr/bin/broken", b"\x7fELF").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("usr/bin/broken: not a readable ELF file"),
            "{error}"
        );
    }

    #[test]
    fn a_dynamic_program_of_the_host_is_read_like_readelf_does() {
        let needs = needs("/bin/ls", &std::fs::read("/bin/ls").unwrap()).unwrap();
        assert!(
            needs.libraries.iter().any(|name| name == "libc.so.6"),
            "{needs:?}"
        );
        assert_eq!(needs.loader.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let data = std::fs::read("/bin/ls").unwrap();
        let error = closure([("usr/bin/ls", data.as_slice())], &BTreeMap::new()).unwrap_err();
        assert!(
            matches!(error, ElfError::Missing { ref path, .. } if path == "usr/bin/ls"),
            "{error}"
        );
    }
}
