//! What the fuzzer calls, one function per kind of input that comes from a registry or in an archive.
//!
//! The inputs that were worth keeping lie in `fuzz/corpus`; the tests below feed them to the same functions. See `make fuzz`.
//!
//! Each tells whether the input was accepted: an input that is refused is fine, a panic is a finding. So is what the
//! assertions name.

use std::fs;

use crate::digest::Digest;
use crate::manifest::{Document, Manifest};
use crate::reference::Reference;
use crate::unpack::{UnpackLimits, unpack};

/// Takes an input, and tells whether it was accepted.
pub type Target = fn(&[u8]) -> bool;

/// All of them, by the name of their corpus.
pub const TARGETS: [(&str, Target); 3] = [("layer", layer), ("manifest", manifest), ("name", name)];

/// What a layer may use here: little, so that a try takes little.
const LIMITS: UnpackLimits = UnpackLimits {
    bytes: 1 << 20,
    entries: 200,
};

/// A layer's archive. It is unpacked into a directory of its own, beside which nothing may come to be.
pub fn layer(data: &[u8]) -> bool {
    let parent = tempfile::tempdir().expect("a directory for the layer");
    let path = parent.path().join("root");
    fs::create_dir(&path).expect("the layer's root");
    let root = fs::File::open(&path).expect("the layer's root");
    let archive = with_checksums(data);
    let unpacked = unpack(&*archive, root.into(), LIMITS);
    let beside: Vec<_> = fs::read_dir(parent.path())
        .expect("the directory for the layer")
        .map(|entry| entry.expect("its entry").file_name())
        .collect();
    assert_eq!(
        beside,
        ["root"],
        "the layer made something outside of its root"
    );
    match unpacked {
        Ok(unpacked) => {
            assert!(unpacked.bytes <= LIMITS.bytes);
            let used: u64 = lengths(&path);
            assert!(used <= LIMITS.bytes, "{used} bytes of files");
            true
        }
        Err(_) => false,
    }
}

/// The bytes of all files below a directory.
fn lengths(directory: &std::path::Path) -> u64 {
    let entries = fs::read_dir(directory).expect("a directory of the layer");
    entries
        .map(|entry| {
            let entry = entry.expect("an entry of the layer");
            let metadata = entry.metadata().expect("its metadata");
            if metadata.is_dir() {
                lengths(&entry.path())
            } else if metadata.is_file() {
                use std::os::unix::fs::MetadataExt;
                // Names of the same file share its length.
                metadata.len() / metadata.nlink()
            } else {
                0
            }
        })
        .sum()
}

/// The same archive with the right sum in each header: a mutation hardly ever gets it right, and nobody hostile gets it
/// wrong. What is compressed is left as it is.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    use crate::archive::BLOCK;
    const SUM: std::ops::Range<usize> = 148..156;
    let mut archive = data.to_vec();
    if matches!(data, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..]) {
        return archive;
    }
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[SUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = crate::archive::number(&header[124..136]).unwrap_or(0);
        let blocks = usize::try_from(size).map_or(0, |size| size.div_ceil(BLOCK));
        at = at.saturating_add(blocks.saturating_add(1).saturating_mul(BLOCK));
        if at > archive.len() {
            break;
        }
    }
    archive
}

/// A manifest or a list of them; and, as if it were one, a configuration.
pub fn manifest(data: &[u8]) -> bool {
    let digest = Digest::of(data);
    let document = Document::parse(&digest, data);
    let any = Manifest {
        digest: digest.clone(),
        config: crate::manifest::Blob { digest, size: 0 },
        layers: Vec::new(),
    };
    let config = any.config(data);
    document.is_ok() || config.is_ok()
}

/// The name of an image, or a digest.
pub fn name(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text, "a digest is written in one way");
        // It becomes the name of a file.
        assert!(!digest.hex().contains(['/', '.']), "{text:?}");
    }
    let Ok(reference) = text.parse::<Reference>() else {
        return false;
    };
    let shown = reference.to_string();
    let again = shown.parse::<Reference>().map(|again| again.to_string());
    assert_eq!(again.ok(), Some(shown), "what is shown can be given");
    true
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::unpack::UnpackError;

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries =
            fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
        let mut names: Vec<String> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                path.file_stem().unwrap().to_str().unwrap().to_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        targets.sort_unstable();
        assert_eq!(names(&directory().join("fuzz_targets")), targets);
        assert_eq!(names(&directory().join("corpus")), targets);
    }

    #[test]
    fn the_holes_of_a_sparse_file_count_as_what_they_come_out_as() {
        let outcome = |file: &str| {
            let data = fs::read(directory().join("corpus/layer").join(file)).unwrap();
            let root = tempfile::tempdir().unwrap();
            let fd = fs::File::open(root.path()).unwrap();
            let unpacked = unpack(&*with_checksums(&data), fd.into(), LIMITS);
            (unpacked, lengths(root.path()))
        };
        let (unpacked, length) = outcome("sparse");
        assert!(unpacked.is_ok(), "{unpacked:?}");
        assert_eq!(length, 4096);
        // Four exabytes, in an archive of two kilobytes: as a file, and as one that is passed over.
        for file in ["sparse-bomb", "sparse-bomb-skipped"] {
            let (unpacked, length) = outcome(file);
            assert!(
                matches!(unpacked, Err(UnpackError::TooManyBytes { limit }) if limit == LIMITS.bytes),
                "{file}: {unpacked:?}"
            );
            assert!(length <= LIMITS.bytes, "{file}: {length}");
        }
    }

    #[test]
    fn nothing_in_the_corpus_of_the_fuzzer_is_a_finding() {
        for (name, target) in TARGETS {
            let corpus = directory().join("corpus").join(name);
            let (mut files, mut accepted) = (0, 0);
            for entry in fs::read_dir(&corpus).unwrap() {
                let path = entry.unwrap().path();
                // A panic does not say what it was given.
                println!("{}", path.display());
                files += 1;
                accepted += usize::from(target(&fs::read(&path).unwrap()));
            }
            // Something that is always refused tries nothing.
            assert!(accepted > 0, "{name}: none of {files} files is accepted");
        }
    }
}
