//! OCI container lifecycle library and the knarr-oci program.
