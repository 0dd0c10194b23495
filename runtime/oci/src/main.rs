//! `knarr-oci`: containers by the OCI runtime specification, with runc's command line.
#![cfg_attr(not(test), no_main)]

mod cli;
