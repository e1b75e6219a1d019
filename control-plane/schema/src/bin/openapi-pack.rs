//! `openapi-pack DEFINITIONS.json OUT`: the description pack that `--openapi-descriptions` takes.

use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [definitions, out] = arguments.as_slice() else {
        eprintln!(
            "usage: openapi-pack DEFINITIONS.json OUT\nDEFINITIONS.json is _definitions.json of the Python package kubernetes-validate."
        );
        return ExitCode::from(2);
    };
    match run(definitions, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("openapi-pack: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(definitions: &str, out: &str) -> Result<(), String> {
    let text = fs::read(definitions).map_err(|error| format!("{definitions}: {error}"))?;
    let pack = schema::openapi::build_pack(&text).map_err(|error| format!("{definitions}: {error}"))?;
    fs::write(out, pack).map_err(|error| format!("{out}: {error}"))
}
