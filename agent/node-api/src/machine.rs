//! What PID 1 says and does for us, on its socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use node_config::machine_state::{ACCEPTED, MachineState, Order, SOCKET, STATE};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Status;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum MachineError {
    #[error("init cannot be asked on {0}: {1}")]
    Away(PathBuf, io::Error),
    #[error("init answers {0:?}")]
    Answer(String),
}

impl From<MachineError> for Status {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Away(..) => Self::unavailable(error.to_string()),
            MachineError::Answer(_) => Self::internal(error.to_string()),
        }
    }
}

async fn ask(run_dir: &Path, word: &str) -> Result<String, MachineError> {
    let path = run_dir.join(SOCKET);
    let conversation = async {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(format!("{word}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    match tokio::time::timeout(ANSWER_WITHIN, conversation).await {
        Ok(result) => result.map_err(|error| MachineError::Away(path, error)),
        Err(_) => Err(MachineError::Away(path, io::ErrorKind::TimedOut.into())),
    }
}

pub async fn state(run_dir: &Path) -> Result<MachineState, MachineError> {
    let answer = ask(run_dir, STATE).await?;
    answer.parse().map_err(|_| MachineError::Answer(answer))
}

pub async fn order(run_dir: &Path, order: Order) -> Result<(), MachineError> {
    match ask(run_dir, &order.to_string()).await? {
        answer if answer == ACCEPTED => Ok(()),
        answer => Err(MachineError::Answer(answer)),
    }
}
