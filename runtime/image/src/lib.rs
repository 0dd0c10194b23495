//! Pull, content store, unpacking, snapshots and garbage collection of images.
