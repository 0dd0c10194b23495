//! The name of a container.

use std::fmt;

/// A container's id: the name of its state directory, so it can never be a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// An id that cannot be.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid container id {id:?}: 1 to 1024 of the characters a-z A-Z 0-9 _ + - . with at least one that is no dot"
)]
pub struct InvalidId {
    id: String,
}

impl ContainerId {
    /// Takes what runc takes: letters, digits and `_+-.`, but neither `.` nor `..`, and no name of ours (a leading dot).
    ///
    /// # Errors
    ///
    /// [`InvalidId`] for everything else.
    pub fn parse(id: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if id.is_empty() || id.len() > 1024 || id.starts_with('.') || !id.bytes().all(allowed) {
            return Err(InvalidId { id: id.to_owned() });
        }
        Ok(Self(id.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(id: &str) -> Result<Self, InvalidId> {
        Self::parse(id)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::ContainerId;

    #[test]
    fn an_id_can_never_be_a_path() {
        for id in ["", ".", "..", ".hidden", "a/b", "../x", "a\0b", "ü"] {
            assert!(ContainerId::parse(id).is_err(), "{id:?}");
        }
        for id in ["a", "A-1_2+3.4", "x..y"] {
            assert!(ContainerId::parse(id).is_ok(), "{id:?}");
        }
    }
}
