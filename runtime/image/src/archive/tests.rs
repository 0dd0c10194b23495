use super::*;

/// A header of the given magic, with its check sum.
fn header(letter: u8, path: &str, size: u64, magic: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = letter;
    block[257..257 + magic.len()].copy_from_slice(magic);
    sum(block)
}

fn sum(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

const USTAR: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

fn padded(content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(content.len().next_multiple_of(BLOCK), 0);
    content
}

fn records(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (name, value) in records {
        let rest = name.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        text.push_str(&format!("{length} {name}={value}\n"));
    }
    let header = header(b'x', "PaxHeader", text.len() as u64, USTAR);
    [&header[..], &padded(text.as_bytes())].concat()
}

/// Paths, kinds, and contents with their holes filled.
fn read(archive: &[u8]) -> io::Result<Vec<(String, Kind, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match reader.piece(&mut buffer)? {
                Piece::Data(n) => content.extend(&buffer[..n]),
                Piece::Hole(n) => content.resize(content.len() + usize::try_from(n).unwrap(), 0),
                Piece::End => break,
            }
        }
        assert_eq!(content.len() as u64, entry.size);
        entries.push((String::from_utf8(entry.path).unwrap(), entry.kind, content));
    }
    Ok(entries)
}

fn file(path: &str, content: Vec<u8>) -> (String, Kind, Vec<u8>) {
    (path.to_owned(), Kind::File, content)
}

/// Two fragments, at 1000 and 3000, of a file of 5000 bytes.
fn wanted() -> Vec<(String, Kind, Vec<u8>)> {
    let mut content = vec![0; 5000];
    content[1000..1004].copy_from_slice(b"head");
    content[3000..3005].copy_from_slice(b"later");
    vec![file("sparse", content), file("next", b"n".to_vec())]
}

fn followed(mut archive: Vec<u8>) -> Vec<u8> {
    archive.extend(header(b'0', "next", 1, USTAR));
    archive.extend(padded(b"n"));
    archive.extend([0; 2 * BLOCK]);
    archive
}

#[test]
fn all_four_forms_of_sparse_files_are_read() {
    let data = [&header(b'0', "x", 9, USTAR)[..], &padded(b"headlater")].concat();
    let form_00 = records(&[
        ("GNU.sparse.size", "5000"),
        ("GNU.sparse.numblocks", "3"),
        ("GNU.sparse.offset", "1000"),
        ("GNU.sparse.numbytes", "4"),
        ("GNU.sparse.offset", "3000"),
        ("GNU.sparse.numbytes", "5"),
        ("GNU.sparse.offset", "5000"),
        ("GNU.sparse.numbytes", "0"),
        ("path", "sparse"),
    ]);
    let form_01 = records(&[
        ("GNU.sparse.size", "5000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.map", "1000,4,3000,5"),
        ("GNU.sparse.name", "sparse"),
    ]);
    let form_10 = records(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", "5000"),
    ]);
    let map = padded(b"3\n1000\n4\n3000\n5\n5000\n0\n");
    let leading = header(b'0', "GNUSparseFile.0/x", map.len() as u64 + 9, USTAR);
    let leading = [&leading[..], &map, &padded(b"headlater")].concat();
    let mut old = header(b'S', "sparse", 9, GNU);
    for (at, number) in [1000, 4, 3000, 5].into_iter().enumerate() {
        old[386 + 12 * at..][..11].copy_from_slice(format!("{number:011o}").as_bytes());
    }
    old[483..494].copy_from_slice(format!("{:011o}", 5000).as_bytes());
    // The last, empty fragment in a block of its own.
    let mut extended = old;
    extended[482] = 1;
    let mut extension = [0; BLOCK];
    extension[..11].copy_from_slice(format!("{:011o}", 5000).as_bytes());
    extension[12..23].copy_from_slice(format!("{:011o}", 0).as_bytes());
    let archives = [
        [form_00, data.clone()].concat(),
        [form_01, data].concat(),
        [form_10, leading].concat(),
        [&sum(old)[..], &padded(b"headlater")].concat(),
        [&sum(extended)[..], &extension, &padded(b"headlater")].concat(),
    ];
    for (at, archive) in archives.into_iter().enumerate() {
        assert_eq!(read(&followed(archive)).unwrap(), wanted(), "form {at}");
    }
}

#[test]
fn a_file_that_is_one_hole_is_as_long_as_it_was() {
    let archive = [
        records(&[("GNU.sparse.size", "700"), ("GNU.sparse.numblocks", "0")]),
        header(b'0', "hole", 0, USTAR).to_vec(),
    ];
    assert_eq!(
        read(&archive.concat()).unwrap(),
        [file("hole", vec![0; 700])]
    );
}

#[test]
fn maps_that_cannot_be_are_refused() {
    let map = |numbers: &str, blocks: &str, size: &str, stored: u64| {
        let archive = [
            records(&[
                ("GNU.sparse.size", size),
                ("GNU.sparse.numblocks", blocks),
                ("GNU.sparse.map", numbers),
            ]),
            header(b'0', "x", stored, USTAR).to_vec(),
            vec![0; BLOCK],
        ];
        read(&archive.concat())
    };
    assert!(map("0,5,10,5", "2", "20", 10).is_ok());
    for (numbers, blocks, size, stored) in [
        ("0,5,3,5", "2", "20", 10),
        ("10,5,0,5", "2", "20", 10),
        ("0,5,10,5", "2", "12", 10),
        ("0,5,10,5", "2", "20", 9),
        ("0,5,10,5", "2", "20", 11),
        ("0,5,10,5", "3", "20", 10),
        ("0,5,10", "2", "20", 10),
        ("0,5,10,-5", "2", "20", 10),
        ("0,5,18446744073709551615,5", "2", "20", 10),
        ("0,5,10,5", "2", "18446744073709551615", 10),
    ] {
        let result = map(numbers, blocks, size, stored);
        assert!(
            result.is_err(),
            "{numbers} {blocks} {size} {stored}: {result:?}"
        );
    }
    let unknown = [
        records(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]),
        header(b'0', "x", 0, USTAR).to_vec(),
    ];
    assert!(read(&unknown.concat()).is_err());
}

#[test]
fn directories_of_v7_end_in_a_slash() {
    let mut archive = header(b'\0', "dir/", 0, b"").to_vec();
    archive.extend(header(b'\0', "dir/file", 2, b""));
    archive.extend(padded(b"hi"));
    // A directory's size says nothing: no content follows it.
    archive.extend(header(b'5', "other/", 4096, USTAR));
    archive.extend(header(b'0', "not/", 0, USTAR));
    let kinds: Vec<_> = read(&followed(archive))
        .unwrap()
        .into_iter()
        .map(|(path, kind, _)| (path, kind))
        .collect();
    let want = [
        ("dir/", Kind::Directory),
        ("dir/file", Kind::File),
        ("other/", Kind::Directory),
        ("not/", Kind::File),
        ("next", Kind::File),
    ];
    assert_eq!(kinds, want.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn the_prefix_is_read_where_the_form_has_one() {
    let path = |magic: &[u8], trailer: &[u8], prefix: &[u8]| {
        let mut block = header(b'0', "name", 0, magic);
        block[345..345 + prefix.len()].copy_from_slice(prefix);
        block[508..508 + trailer.len()].copy_from_slice(trailer);
        let entries = read(&sum(block)).unwrap();
        entries[0].0.clone()
    };
    assert_eq!(path(USTAR, b"", b"a/b"), "a/b/name");
    assert_eq!(path(USTAR, b"tar\0", b"a/b"), "a/b/name");
    assert_eq!(path(GNU, b"", b"00000001234\0"), "name");
    // As Go wrote it for years, and Docker with it.
    assert_eq!(path(GNU, b"", b"a/b"), "a/b/name");
    assert_eq!(path(b"", b"", b"a/b"), "name");
}

#[test]
fn archives_that_stop_too_early_or_go_on_too_late_are_refused() {
    let whole = followed(header(b'0', "x", 0, USTAR).to_vec());
    let end = whole.len() - 2 * BLOCK;
    assert_eq!(read(&whole).unwrap().len(), 2);
    // Without an end mark, with half of one, and with something behind it.
    assert_eq!(read(&whole[..end]).unwrap().len(), 2);
    assert_eq!(read(&whole[..end + BLOCK]).unwrap().len(), 2);
    assert_eq!(read(&[&whole, &b"trailing"[..]].concat()).unwrap().len(), 2);
    // The last block of content may be cut after the content.
    assert_eq!(read(&whole[..end - BLOCK + 1]).unwrap().len(), 2);
    for length in [end - BLOCK, end - BLOCK - 1, BLOCK + 100, 1] {
        assert!(read(&whole[..length]).is_err(), "{length}");
    }
    let mut gap = header(b'0', "x", 0, USTAR).to_vec();
    gap.extend([0; BLOCK]);
    assert!(read(&followed(gap)).is_err());
    let mut wrong = header(b'0', "x", 0, USTAR);
    wrong[0] = b'y';
    assert!(read(&wrong).is_err());
    let long = header(b'L', "x", 3 << 20, GNU);
    let text = vec![b'a'; 3 << 20];
    assert!(read(&[&long[..], &text].concat()).is_err());
}
