//! One tiny process per pod, parent of its containers.
