//! What bounds the pods of others: how many may be disrupted, how much they may use, which come first.

mod disruption_budget;
mod limit_range;
mod priority_class;
mod resource_names;
mod resource_quota;

pub use disruption_budget::PodDisruptionBudget;
pub use limit_range::LimitRange;
pub use priority_class::PriorityClass;
pub use resource_quota::ResourceQuota;

#[cfg(test)]
mod tests;
