//! `--audit-*`: upstream's flags of the audit log.

use std::path::PathBuf;
use std::time::Duration;

use apiserver::AuditOptions;
use apiserver::audit::{LogOptions, WebhookOptions};
use clap::{Args, ValueEnum};

use crate::flags::duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
}

#[derive(Debug, Clone, Args)]
pub struct Audit {
    /// The Policy (audit.k8s.io/v1) that says which requests are logged
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where the audit log goes; - is standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// A line an event
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub audit_log_format: LogFormat,
    /// Days that old audit logs are kept; 0: for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub audit_log_maxage: u64,
    /// Old audit logs that are kept; 0: all
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub audit_log_maxbackup: usize,
    /// Megabytes an audit log may have before the next begins; 0: 100
    #[arg(long, value_name = "MB", default_value_t = 0)]
    pub audit_log_maxsize: u64,
    /// A kubeconfig that says where audit events are sent to
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Events sent at once
    #[arg(long, value_name = "COUNT", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub audit_webhook_batch_max_size: u32,
    /// How long the first event of a batch waits for more
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Duration,
    /// How long to wait before a batch that was not taken is sent again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub audit_webhook_initial_backoff: Duration,
}

impl Audit {
    pub fn options(&self) -> AuditOptions {
        AuditOptions {
            policy_file: self.audit_policy_file.clone(),
            log: self.audit_log_path.clone().map(|path| LogOptions {
                path,
                max_age_days: self.audit_log_maxage,
                max_backups: self.audit_log_maxbackup,
                max_megabytes: self.audit_log_maxsize,
            }),
            webhook: self
                .audit_webhook_config_file
                .clone()
                .map(|config_file| WebhookOptions {
                    config_file,
                    batch_max_size: usize::try_from(self.audit_webhook_batch_max_size).unwrap_or(usize::MAX),
                    batch_max_wait: self.audit_webhook_batch_max_wait,
                    initial_backoff: self.audit_webhook_initial_backoff,
                }),
        }
    }
}
