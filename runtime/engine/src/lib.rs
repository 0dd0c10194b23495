//! Sandboxes, containers and images behind one asynchronous API.
