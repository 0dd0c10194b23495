//! Control files: what to write to which, and doing it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::CgroupError;

/// What to write where, decided before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write1 {
    /// The controller, as v1 names it; on v2 it only says which to enable.
    pub controller: &'static str,
    /// The file's name.
    pub file: String,
    /// What to write.
    pub value: String,
    /// The field of the configuration, for errors.
    pub wanted_by: &'static str,
    /// Whether a missing file or a refusal is no failure (the value is only a default of ours).
    pub optional: bool,
    /// File and value for a kernel that has not this file.
    pub otherwise: Option<(String, String)>,
}

impl Write1 {
    pub fn new(
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
        wanted_by: &'static str,
    ) -> Self {
        Self {
            controller,
            file: file.into(),
            value: value.to_string(),
            wanted_by,
            optional: false,
            otherwise: None,
        }
    }

    /// What a kernel without the file gets instead.
    pub fn or(mut self, file: impl Into<String>, value: impl ToString) -> Self {
        self.otherwise = Some((file.into(), value.to_string()));
        self
    }

    /// A first try of a write that comes again: which of two related files is to be written first depends on what is in
    /// them already (quota and burst, quota and period).
    pub fn first_try(&self) -> Self {
        Self {
            optional: true,
            ..self.clone()
        }
    }
}

/// Performs writes in order; several to one file in a row, as with device rules, open it once.
#[derive(Default)]
pub(super) struct Performer {
    open: Option<(PathBuf, fs::File)>,
}

impl Performer {
    pub fn perform(&mut self, directory: &Path, order: &Write1) -> Result<(), CgroupError> {
        let done = self.write(directory.join(&order.file), &order.value);
        let done = match (done, &order.otherwise) {
            (Err(CgroupError::Write { source, .. }), Some((file, value)))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                self.write(directory.join(file), value)
            }
            (done, _) => done,
        };
        match done {
            Err(_) if order.optional => Ok(()),
            // A file that the kernel does not have: say what wanted it.
            Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(CgroupError::NoController {
                    controller: format!("{} ({})", order.controller, order.file),
                    wanted_by: order.wanted_by.to_owned(),
                })
            }
            done => done,
        }
    }

    fn write(&mut self, path: PathBuf, value: &str) -> Result<(), CgroupError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != path) {
            let file = fs::OpenOptions::new().write(true).open(&path);
            let file = file.map_err(|source| CgroupError::Write {
                path: path.clone(),
                value: value.to_owned(),
                source,
            })?;
            self.open = Some((path.clone(), file));
        }
        let (_, file) = self.open.as_mut().expect("set above");
        let done = file.write_all(value.as_bytes());
        done.map_err(|source| CgroupError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }
}

/// Control files are written with one write(2) each: the kernel parses each call by itself.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let done = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    done.map_err(|source| CgroupError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

pub(crate) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read {
        path: path.to_owned(),
        source,
    })
}
