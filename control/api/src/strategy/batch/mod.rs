//! Jobs and cron jobs.
//!
//! Reading order: `job` (the hooks), `job_spec` (what a spec may say) with its two `policies`, `job_update` (what may change),
//! `indexes` and `job_status` (what a controller may report), `print` (the table), `cronjob`, `schedule`.

mod cronjob;
mod indexes;
mod job;
mod job_spec;
mod job_status;
mod job_update;
mod policies;
mod print;
mod schedule;

pub use cronjob::CronJob;
pub use job::Job;

#[cfg(test)]
mod tests;
