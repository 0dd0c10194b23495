//! Boots whole machines under QEMU and runs Knarr in them.
