//! The trees that come of archives, compared with those of a second reader (Python's `tarfile`) and with what GNU tar has packed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use knarr_image::{Digest, ImageStore};

use crate::build::{Compression, TestImage, gzip, temp_dir};
use crate::generate::{Generator, Packing};
use crate::import::store;

/// Imports an image of one layer and returns the layer's tree.
fn unpacked(dir: &Path, store: &ImageStore, archive: Vec<u8>, packed: Vec<u8>) -> PathBuf {
    let image = TestImage::new().packed_layer(archive, packed);
    let images = store.import(&*image.layout("x/y:1").tar(), None);
    let images = images.unwrap_or_else(|err| panic!("{}", chain(&err)));
    dir.join("images/layers")
        .join(images[0].layers[0].hex())
        .join("fs")
}

fn chain(err: &dyn std::error::Error) -> String {
    match err.source() {
        Some(source) => format!("{err}: {}", chain(source)),
        None => err.to_string(),
    }
}

fn shown(text: &[u8]) -> String {
    let plain = |byte: &u8| match byte {
        33..=126 if *byte != b'\\' => char::from(*byte).to_string(),
        other => format!("\\x{other:02x}"),
    };
    text.iter().map(plain).collect()
}

/// A tree in the words of the second reader.
fn lines(root: &Path) -> Vec<String> {
    let mut seen = BTreeMap::new();
    let mut lines = Vec::new();
    below(root, Path::new(""), &mut seen, &mut lines);
    lines
}

fn below(root: &Path, path: &Path, seen: &mut BTreeMap<u64, String>, lines: &mut Vec<String>) {
    let entries = fs::read_dir(root.join(path)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = path.join(name);
        let full = root.join(&path);
        let stat = fs::symlink_metadata(&full).unwrap();
        let text = shown(path.as_os_str().as_bytes());
        if stat.mode() & 0o170_000 == 0o020_000 && stat.rdev() == 0 {
            lines.push(format!("{text} whiteout"));
            continue;
        }
        let kind = match stat.mode() & 0o170_000 {
            0o040_000 => "d",
            0o120_000 => "l",
            0o020_000 => "c",
            0o060_000 => "b",
            0o010_000 => "p",
            _ => "f",
        };
        let (mut size, mut digest, mut link) = (0, "-".to_owned(), String::new());
        if kind == "f" {
            size = stat.len();
            digest = Digest::of(&fs::read(&full).unwrap()).hex().to_owned();
        } else if kind == "l" {
            link = shown(fs::read_link(&full).unwrap().as_os_str().as_bytes());
        }
        let device = match kind {
            "c" | "b" => (
                rustix::fs::major(stat.rdev()),
                rustix::fs::minor(stat.rdev()),
            ),
            _ => (0, 0),
        };
        let first = seen.entry(stat.ino()).or_insert_with(|| text.clone());
        lines.push(format!(
            "{text} {kind} {:o} {}:{} {} {size} {digest} {}:{} ->{link} ={first} [{}]",
            stat.mode() & 0o7777,
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            device.0,
            device.1,
            attributes(&full),
        ));
        if kind == "d" {
            below(root, &path, seen, lines);
        }
    }
}

fn attributes(path: &Path) -> String {
    let mut list = [0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..length].split(|byte| *byte == 0);
    let mut attributes: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = [0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            format!("{}={}", shown(name), hex::encode(&value[..length]))
        })
        .collect();
    attributes.sort();
    attributes.join(",")
}

/// What the second reader says of each archive.
fn second_reader(archives: &[PathBuf]) -> Vec<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image/second_reader.py");
    let output = Command::new("python3").arg(script).args(archives).output();
    let output = output.expect("package python3 is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        text.lines()
            .rev()
            .find(|l| l.starts_with("archive "))
            .unwrap_or_default()
    );
    let mut trees = Vec::new();
    for line in text.lines() {
        if line.starts_with("archive ") {
            trees.push(Vec::new());
        } else {
            trees.last_mut().unwrap().push(line.to_owned());
        }
    }
    trees
}

/// Nobody says what the times of directories are that no entry is for.
fn same(ours: &[String], theirs: &[String]) -> bool {
    let without_time = |line: &str| {
        let mut words: Vec<_> = line.split(' ').collect();
        if words.len() > 4 {
            words[4] = "-";
        }
        words.join(" ")
    };
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(our, their)| {
            our == their || (their.split(' ').nth(4) == Some("-") && without_time(our) == *their)
        })
}

#[test]
fn trees_are_those_of_a_second_reader() {
    const ARCHIVES: u64 = 120;
    let work = temp_dir();
    let archives: Vec<_> = (1..=ARCHIVES)
        .map(|seed| Generator::new(seed).archive())
        .collect();
    let paths: Vec<_> = (1..=ARCHIVES)
        .map(|seed| work.path().join(format!("{seed}.tar")))
        .collect();
    for (path, archive) in paths.iter().zip(&archives) {
        fs::write(path, &archive.content).unwrap();
    }
    let theirs = second_reader(&paths);
    let (dir, store) = store();
    for (at, (archive, theirs)) in archives.into_iter().zip(theirs).enumerate() {
        let seed = at + 1;
        let how = archive.entries.join("\n");
        println!("seed {seed}:\n{how}");
        let ours = lines(&unpacked(
            dir.path(),
            &store,
            archive.content,
            archive.packed,
        ));
        assert!(
            same(&ours, &theirs),
            "seed {seed}: ours\n{}\ntheirs\n{}\nof\n{how}",
            ours.join("\n"),
            theirs.join("\n")
        );
    }
}

#[test]
fn what_gnu_tar_packs_comes_out_as_it_was() {
    let source = temp_dir();
    let root = source.path().join("root");
    fs::create_dir_all(root.join("dir/deep")).unwrap();
    fs::write(root.join("dir/file"), "content").unwrap();
    chown(root.join("dir/file"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::hard_link(root.join("dir/file"), root.join("dir/second")).unwrap();
    symlink("../dir/file", root.join("dir/deep/link")).unwrap();
    fs::set_permissions(root.join("dir/deep"), fs::Permissions::from_mode(0o1700)).unwrap();
    // Holes at the beginning, in the middle and at the end; one file that is nothing else; many stretches.
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"first", 1 << 20).unwrap();
    sparse.write_all_at(&[7; 5000], 3 << 20).unwrap();
    sparse.set_len((5 << 20) + 1).unwrap();
    File::create(root.join("hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let many = File::create(root.join("many")).unwrap();
    for i in 0..60 {
        many.write_all_at(&[1; 4096], i << 16).unwrap();
    }
    for (i, mtime) in [("dir/file", 1_000_000_007), ("sparse", 1_500_000_000)] {
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: mtime,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: mtime,
                tv_nsec: 0,
            },
        };
        let none = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, root.join(i), &times, none).unwrap();
    }
    let plain = lines(&root);
    // What only some forms can hold.
    let long = root.join("n".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("x"), "y").unwrap();
    symlink("l".repeat(200), root.join("long-link")).unwrap();
    let all = lines(&root);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("dir/file"), "trusted.a", b"x\ny\n=\0\xff", flags).unwrap();
    let attributed = lines(&root);
    let (dir, store) = store();
    for (options, exclude, want) in [
        (&["--format=v7"][..], true, &plain),
        (&["--format=ustar"], true, &plain),
        (&["--format=oldgnu", "--sparse"], false, &all),
        (&["--format=gnu", "--sparse"], false, &all),
        (
            &["--format=posix", "--sparse", "--sparse-version=0.0"],
            false,
            &all,
        ),
        (
            &["--format=posix", "--sparse", "--sparse-version=0.1"],
            false,
            &all,
        ),
        (
            &["--format=posix", "--sparse", "--sparse-version=1.0"],
            false,
            &all,
        ),
        (
            &["--format=posix", "--xattrs", "--xattrs-include=*"],
            false,
            &attributed,
        ),
    ] {
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--numeric-owner", "-cf", "-"])
            .args(options);
        if exclude {
            tar.args(["--exclude=nnn*", "--exclude=long-link"]);
        }
        let output = tar.arg("-C").arg(&root).arg(".").output().unwrap();
        assert!(output.status.success(), "{options:?}: {output:?}");
        let packed = gzip(&output.stdout);
        let ours = lines(&unpacked(dir.path(), &store, output.stdout, packed));
        assert_eq!(ours, *want, "{options:?}");
    }
}

#[test]
fn compressed_layers_are_read_however_they_were_cut_into_pieces() {
    let archive = crate::build::Archive::new()
        .file(
            "x",
            &(0..200_000_u32)
                .flat_map(u32::to_le_bytes)
                .collect::<Vec<_>>(),
        )
        .finish();
    let (dir, store) = store();
    for packing in [
        Packing::Gzip {
            members: 3,
            trailing: 0,
        },
        Packing::Gzip {
            members: 1,
            trailing: 700,
        },
        Packing::Zstd {
            frames: 3,
            skippable: true,
        },
        Packing::Zstd {
            frames: 1,
            skippable: false,
        },
    ] {
        let packed = packing.pack(&archive);
        let root = unpacked(dir.path(), &store, archive.clone(), packed);
        assert_eq!(fs::metadata(root.join("x")).unwrap().len(), 800_000);
        store.remove("x/y:1").unwrap();
    }
    // A member that breaks off is no end.
    let mut cut = gzip(&archive);
    cut.truncate(cut.len() - 20);
    let image = TestImage::new().packed_layer(archive, cut);
    assert!(store.import(&*image.layout("x/y:1").tar(), None).is_err());
}

#[test]
fn an_empty_layer_is_one() {
    let (dir, store) = store();
    for archive in [vec![], vec![0; 512], vec![0; 1024], vec![0; 10_240]] {
        for packed in [archive.clone(), gzip(&archive)] {
            let root = unpacked(dir.path(), &store, archive.clone(), packed);
            assert_eq!(fs::read_dir(root).unwrap().count(), 0);
            store.remove("x/y:1").unwrap();
        }
    }
    let image = TestImage::new().layer(vec![0; 1024], Compression::Gzip);
    store.import(&*image.layout("x/y:1").tar(), None).unwrap();
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    // Of a process of its own: the umask is the whole process's.
    if std::env::var_os("KNARR_TEST_UMASK").is_none() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "trees::modes_do_not_depend_on_the_umask"])
            .env("KNARR_TEST_UMASK", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let archive = crate::build::Archive::new()
        .file("implicit/below/file", b"x")
        .directory("explicit/")
        .file("gone/.wh.x", b"")
        .file("gone/x/again", b"x")
        .device("null", 1, 3);
    let (dir, store) = store();
    let image = TestImage::new().layer(archive.finish(), Compression::None);
    let image = store
        .import(&*image.layout("x/y:1").tar(), None)
        .unwrap()
        .remove(0);
    let root = dir
        .path()
        .join("images/layers")
        .join(image.layers[0].hex())
        .join("fs");
    for (path, want) in [
        ("", 0o755),
        ("implicit", 0o755),
        ("implicit/below", 0o755),
        ("implicit/below/file", 0o644),
        ("explicit", 0o755),
        ("gone/x", 0o755),
        ("null", 0o600),
    ] {
        let mode = fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(mode, want, "{path}: {mode:o}");
    }
}

#[test]
fn a_link_that_leads_nowhere_yet_may_have_something_below() {
    let archive = crate::build::Archive::new()
        .symlink("var/run", "/run")
        .file("var/run/lock/x", b"1")
        .symlink("loop", "loop")
        .symlink("up", "../../../over")
        .file("up/y", b"2");
    let (dir, store) = store();
    let bytes = archive.finish();
    let root = unpacked(dir.path(), &store, bytes.clone(), bytes);
    assert_eq!(fs::read(root.join("run/lock/x")).unwrap(), b"1");
    assert_eq!(fs::read(root.join("over/y")).unwrap(), b"2");
    let endless = crate::build::Archive::new()
        .symlink("loop", "loop")
        .file("loop/x", b"")
        .finish();
    let image = TestImage::new().layer(endless, Compression::None);
    assert!(store.import(&*image.layout("x/z:1").tar(), None).is_err());
}
