//! One pod's network: namespace, veth pair, bridge and addresses.
