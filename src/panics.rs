//! A panic is logged like everything else: with its message and where it happened.

/// Makes panics go to the log instead of, as plain text, to standard error. For programs that log.
pub fn log() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(
            message = format!("panic: {}", message(panic.payload())),
            location = panic.location().map(tracing::field::display),
            thread = thread.name(),
        );
    }));
}

fn message(payload: &dyn std::any::Any) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("(without a message)")
}
