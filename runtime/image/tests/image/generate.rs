//! Archives at random, in all the forms that programs have written over the years.

use std::io::Write;

const BLOCK: usize = 512;

/// One archive.
pub struct Generated {
    pub content: Vec<u8>,
    /// The same, compressed in some way or not at all.
    pub packed: Vec<u8>,
    /// What is in it, for people.
    pub entries: Vec<String>,
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug)]
pub enum Packing {
    None,
    /// In several members, with zeros behind the last.
    Gzip {
        members: usize,
        trailing: usize,
    },
    /// In several frames, and as pzstd does with one before them that decoders skip.
    Zstd {
        frames: usize,
        skippable: bool,
    },
}

impl Packing {
    pub fn pack(self, content: &[u8]) -> Vec<u8> {
        let pieces = |count: usize| {
            let length = content.len().div_ceil(count).max(1);
            content
                .chunks(length)
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        };
        match self {
            Self::None => content.to_vec(),
            Self::Gzip { members, trailing } => {
                let members = pieces(members).into_iter();
                let mut packed: Vec<u8> = members.flat_map(|m| crate::build::gzip(&m)).collect();
                packed.resize(packed.len() + trailing, 0);
                packed
            }
            Self::Zstd { frames, skippable } => {
                let mut packed = Vec::new();
                for frame in pieces(frames) {
                    if skippable {
                        packed.extend([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]);
                    }
                    packed.extend(zstd::encode_all(&*frame, 1).unwrap());
                }
                packed
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V7,
    Ustar,
    Pax,
    Gnu,
}

/// One file to be.
struct Wanted {
    path: Vec<u8>,
    letter: u8,
    link: Vec<u8>,
    mode: u32,
    ids: (u64, u64),
    mtime: i64,
    device: (u64, u64),
    content: Vec<u8>,
    /// Offsets and lengths of what is no hole, of a sparse file.
    sparse: Option<Vec<(u64, u64)>>,
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

/// Makes the same archive for the same seed.
pub struct Generator {
    state: u64,
    archive: Vec<u8>,
    entries: Vec<String>,
    /// Files that a hard link may lead to.
    files: Vec<Vec<u8>>,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            archive: Vec::new(),
            entries: Vec::new(),
            files: Vec::new(),
        }
    }

    fn next(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % below
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next(of.len() as u64) as usize]
    }

    pub fn archive(mut self) -> Generated {
        for _ in 0..4 + self.next(14) {
            self.entry();
        }
        match self.next(4) {
            0 => {}
            1 => self.archive.extend([0; BLOCK]),
            2 => self.archive.extend([0; 2 * BLOCK]),
            _ => {
                self.archive.extend([0; 2 * BLOCK]);
                self.archive.extend(b"whatever comes behind");
            }
        }
        let packing = match self.next(3) {
            0 => Packing::None,
            1 => Packing::Gzip {
                members: 1 + self.next(3) as usize,
                trailing: self.one(&[0, 0, 512]),
            },
            _ => Packing::Zstd {
                frames: 1 + self.next(3) as usize,
                skippable: self.next(2) == 0,
            },
        };
        self.entries.push(format!("packed as {packing:?}"));
        Generated {
            packed: packing.pack(&self.archive),
            content: self.archive,
            entries: self.entries,
        }
    }

    /// A directory that exists, does not exist yet, or is the target of a link.
    fn parent(&mut self) -> Vec<u8> {
        let parent: &[u8] = self.one(&[
            b"".as_slice(),
            b"d0/",
            b"d0/d1/",
            b"d2/d3/d4/",
            b"./d5//d6/",
            b"/abs/",
            b"to-d0/",
            b"to-nowhere/x/",
            b"d0/../d7/",
        ]);
        parent.to_vec()
    }

    fn entry(&mut self) {
        let mut wanted = Wanted {
            path: self.parent(),
            letter: b'0',
            link: Vec::new(),
            mode: self.one(&[0o644, 0o755, 0o4711, 0o1777, 0, 0o600]),
            ids: (
                self.one(&[0, 0, 1000, 65_534, 3_000_000]),
                self.one(&[0, 5, 1000, 2_097_152]),
            ),
            mtime: self.one(&[0, 1, 1_700_000_000, 8_589_934_593, -5]),
            device: (0, 0),
            content: Vec::new(),
            sparse: None,
            xattrs: Vec::new(),
        };
        match self.next(13) {
            0..=2 => {
                wanted.path.extend(self.name("f"));
                wanted.letter = self.one(b"000\x007");
                let length = self.one(&[0, 1, 511, 512, 513, 5000]);
                wanted.content = (0..length).map(|_| self.next(256) as u8).collect();
                self.files.push(wanted.path.clone());
            }
            3 | 4 => {
                wanted.path.extend(self.name("s"));
                self.sparse(&mut wanted);
                self.files.push(wanted.path.clone());
            }
            5 | 6 => {
                let path: &[u8] = self.one(&[
                    b"d0/".as_slice(),
                    b"d0/d1/",
                    b"d2/d3/",
                    b"empty/",
                    b"./d5",
                    b"to-d0/sub/",
                    b".",
                ]);
                wanted.path = path.to_vec();
                wanted.letter = b'5';
            }
            7 => {
                wanted.letter = b'2';
                let (path, link): (&[u8], &[u8]) = self.one(&[
                    (b"to-d0".as_slice(), b"d0".as_slice()),
                    (b"to-nowhere", b"/not/there/yet"),
                    (b"d0/l", b"../../../etc/passwd"),
                    (b"l1", b"/"),
                ]);
                (wanted.path, wanted.link) = (path.to_vec(), link.to_vec());
                // A link does not take the place of what other paths lead through.
                if wanted.path.starts_with(b"to-") && !self.archive.is_empty() {
                    wanted.path = b"l2".to_vec();
                }
            }
            8 if !self.files.is_empty() => {
                let at = self.next(self.files.len() as u64) as usize;
                wanted.letter = b'1';
                wanted.link = self.files[at].clone();
                wanted.path.extend(b"hard");
            }
            9 => {
                wanted.letter = self.one(b"346");
                wanted.path.extend(b"node");
                wanted.device = (self.one(&[1, 8, 259]), self.one(&[3, 5, 70_000]));
            }
            10 => {
                let name: &[u8] = self.one(&[
                    b".wh..wh..opq".as_slice(),
                    b".wh.gone",
                    b".wh..wh.plnk",
                    b".wh.f1",
                    b".wh.sub",
                ]);
                wanted.path.extend(name);
                self.files.retain(|file| !file.ends_with(b"f1"));
            }
            11 => {
                wanted
                    .path
                    .extend(self.one(&[b"gone".as_slice(), b"gone/", b"gone/below"]));
                wanted.letter = if wanted.path.ends_with(b"/") {
                    b'5'
                } else {
                    b'0'
                };
                // What is a directory here may be a file there.
                if wanted.path.ends_with(b"gone") {
                    wanted.path.extend(b"-file");
                }
            }
            _ => return self.global(),
        }
        if self.next(4) == 0 && wanted.letter != b'1' {
            for name in ["trusted.one", "security.two"] {
                let value: &[u8] =
                    self.one(&[b"v".as_slice(), b"a\nb\n", b"", b"12 x=y\n", b"\0\xff\xfe="]);
                wanted.xattrs.push((name, value.to_vec()));
            }
        }
        self.write(wanted);
    }

    fn name(&mut self, prefix: &str) -> Vec<u8> {
        match self.next(8) {
            0 => format!("{prefix}-{}", "long".repeat(40)).into_bytes(),
            1 => [prefix.as_bytes(), b"\xc3\xa9 \xff"].concat(),
            2 => format!("{prefix}\nline").into_bytes(),
            n => format!("{prefix}{}", n % 3).into_bytes(),
        }
    }

    fn sparse(&mut self, wanted: &mut Wanted) {
        let (mut at, mut fragments) = (self.one(&[0, 0, 512, 3000]), Vec::new());
        for _ in 0..self.one(&[0, 1, 2, 4, 5, 30]) {
            let length = self.one(&[512, 1024, 4096, 700]);
            fragments.push((at, length));
            at += length + self.one(&[1, 512, 4096, 100_000]);
        }
        let size = at + self.one(&[0, 10, 65_536]);
        // As GNU tar marks the end.
        fragments.push((size, 0));
        let stored: u64 = fragments.iter().map(|(_, length)| length).sum();
        wanted.content = (0..stored).map(|_| 1 + self.next(255) as u8).collect();
        wanted.sparse = Some(fragments);
    }

    /// A record for all files, which says nothing of them.
    fn global(&mut self) {
        self.entries.push("global record".to_owned());
        let text = record("comment", b"a\nb");
        self.block(b'g', b"pax_global_header", &text, Form::Pax);
        // The second reader wants a file after it.
        self.entry();
    }

    fn write(&mut self, wanted: Wanted) {
        let fits = wanted.path.len() <= 100 && wanted.link.len() <= 100;
        let mut form = self.one(&[Form::V7, Form::Ustar, Form::Pax, Form::Pax, Form::Gnu]);
        if !wanted.xattrs.is_empty() {
            form = Form::Pax;
        }
        let sparse_form = wanted
            .sparse
            .is_some()
            .then(|| self.one(&["old", "0.0", "0.1", "1.0"]));
        match sparse_form {
            Some("old") if wanted.xattrs.is_empty() => form = Form::Gnu,
            Some(_) => form = Form::Pax,
            None if !fits && matches!(form, Form::V7 | Form::Ustar) => form = Form::Gnu,
            None if form == Form::V7
                && !matches!(wanted.letter, b'0' | b'\0' | b'1' | b'2' | b'5') =>
            {
                form = Form::Ustar;
            }
            None => {}
        }
        let sparse_form = match (sparse_form, form) {
            (Some("old"), Form::Pax) => Some("0.1"),
            (other, _) => other,
        };
        let shown = String::from_utf8_lossy(&wanted.path).into_owned();
        self.entries.push(format!(
            "{shown:?} type {:?} -> {:?} mode {:o} ids {:?} time {} size {} form {form:?} sparse {sparse_form:?} {:?} xattrs {:?}",
            char::from(wanted.letter),
            String::from_utf8_lossy(&wanted.link),
            wanted.mode,
            wanted.ids,
            wanted.mtime,
            wanted.content.len(),
            wanted.sparse,
            wanted.xattrs,
        ));
        match form {
            Form::Gnu => {
                for (letter, text) in [(b'L', &wanted.path), (b'K', &wanted.link)] {
                    if text.len() > 100 {
                        let text = [text, b"\0".as_slice()].concat();
                        self.block(letter, b"././@LongLink", &text, Form::Gnu);
                    }
                }
                self.file(&wanted, form, None, &[]);
            }
            Form::Pax => {
                let mut records = Vec::new();
                let mut name = wanted.path.clone();
                if self.next(2) == 0 || !fits {
                    records.extend(record("linkpath", &wanted.link));
                    if sparse_form == Some("1.0") {
                        name = b"GNUSparseFile.0/name".to_vec();
                        records.extend(record("GNU.sparse.name", &wanted.path));
                    } else {
                        records.extend(record("path", &wanted.path));
                    }
                }
                if self.next(2) == 0 || wanted.mtime < 0 {
                    records.extend(record("mtime", format!("{}", wanted.mtime).as_bytes()));
                }
                if self.next(3) == 0 {
                    records.extend(record("uid", wanted.ids.0.to_string().as_bytes()));
                    records.extend(record("comment", b"first\nsecond = 12 path=x\n"));
                }
                for (key, value) in &wanted.xattrs {
                    records.extend(record(&format!("SCHILY.xattr.{key}"), value));
                }
                let mut before = Vec::new();
                if let (Some(version), Some(fragments)) = (sparse_form, &wanted.sparse) {
                    let (more, map) = sparse_records(version, fragments);
                    records.extend(more);
                    before = map;
                }
                if !records.is_empty() {
                    self.block(b'x', b"PaxHeaders/x", &records, Form::Pax);
                }
                self.file(&wanted, form, Some(&name), &before);
            }
            Form::V7 | Form::Ustar => self.file(&wanted, form, None, &[]),
        }
    }

    /// An entry that says something of others.
    fn block(&mut self, letter: u8, name: &[u8], text: &[u8], form: Form) {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name);
        header[156] = letter;
        magic(&mut header, form);
        octal(&mut header[124..136], text.len() as u64);
        self.archive.extend(summed(header));
        self.content(text);
    }

    fn content(&mut self, content: &[u8]) {
        self.archive.extend(content);
        self.archive
            .resize(self.archive.len().next_multiple_of(BLOCK), 0);
    }

    /// The file's own header and content, with a map of it `before`.
    fn file(&mut self, wanted: &Wanted, form: Form, name: Option<&[u8]>, before: &[u8]) {
        let mut header = [0; BLOCK];
        let mut path = name.unwrap_or(&wanted.path);
        // V7 knows directories by their slash only.
        let slashed;
        let mut letter = wanted.letter;
        if form == Form::V7 && letter == b'5' {
            slashed = [path, b"/".as_slice()].concat();
            (path, letter) = (&slashed, b'\0');
        }
        if form == Form::Ustar
            && path.len() > 20
            && self.next(2) == 0
            && let Some(slash) = path.iter().position(|byte| *byte == b'/')
            && slash > 0
            && slash + 1 < path.len()
        {
            header[345..345 + slash].copy_from_slice(&path[..slash]);
            path = &path[slash + 1..];
        }
        let end = path.len().min(100);
        header[..end].copy_from_slice(&path[..end]);
        let end = wanted.link.len().min(100);
        header[157..157 + end].copy_from_slice(&wanted.link[..end]);
        self.number(&mut header[100..108], wanted.mode.into());
        self.number(&mut header[108..116], wanted.ids.0);
        self.number(&mut header[116..124], wanted.ids.1);
        if wanted.mtime < 0 {
            if form == Form::Pax {
                octal(&mut header[136..148], 0);
            } else {
                header[136..148]
                    .copy_from_slice(&[&[0xff; 4][..], &wanted.mtime.to_be_bytes()].concat());
            }
        } else {
            self.number(&mut header[136..148], wanted.mtime.cast_unsigned());
        }
        if form != Form::V7 {
            magic(&mut header, form);
            self.number(&mut header[329..337], wanted.device.0);
            self.number(&mut header[337..345], wanted.device.1);
        }
        let mut extension = Vec::new();
        if let (Form::Gnu, Some(fragments)) = (form, &wanted.sparse) {
            letter = b'S';
            let size = fragments.last().map_or(0, |(offset, _)| *offset);
            octal(&mut header[483..495], size);
            let (first, rest) = fragments.split_at(fragments.len().min(4));
            map(&mut header[386..482], first);
            header[482] = u8::from(!rest.is_empty());
            let blocks = rest.chunks(21);
            let count = blocks.len();
            for (at, entries) in blocks.enumerate() {
                let mut block = [0; BLOCK];
                map(&mut block[..504], entries);
                block[504] = u8::from(at + 1 < count);
                extension.extend(block);
            }
        }
        header[156] = letter;
        let whole = [before, &wanted.content].concat();
        self.number(&mut header[124..136], whole.len() as u64);
        self.archive.extend(summed(header));
        self.archive.extend(extension);
        self.content(&whole);
    }

    /// A number in one of the ways to write it; too large ones in the one that holds them.
    fn number(&mut self, field: &mut [u8], number: u64) {
        let digits = format!("{number:o}");
        let width = field.len();
        let way = if digits.len() > width {
            4
        } else {
            self.next(5)
        };
        match way {
            // Zero is nothing at all, or blanks.
            0 if number == 0 => {}
            1 if number == 0 => field.fill(b' '),
            0 | 1 if digits.len() < width => octal(field, number),
            // Blanks before it, and none behind.
            2 => {
                field.fill(b' ');
                field[width - digits.len()..].copy_from_slice(digits.as_bytes());
            }
            3 if digits.len() + 2 <= width => {
                field.fill(0);
                field[..digits.len()].copy_from_slice(digits.as_bytes());
                field[digits.len()] = b' ';
            }
            _ => {
                let bytes = number.to_be_bytes();
                let kept = width.min(8);
                field.fill(0);
                field[width - kept..].copy_from_slice(&bytes[8 - kept..]);
                field[0] |= 0x80;
            }
        }
    }
}

fn magic(header: &mut [u8; BLOCK], form: Form) {
    let magic: &[u8] = match form {
        Form::V7 => b"",
        Form::Ustar | Form::Pax => b"ustar\x0000",
        Form::Gnu => b"ustar  \0",
    };
    header[257..257 + magic.len()].copy_from_slice(magic);
}

fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    let text = format!("{number:0width$o}\0");
    field.copy_from_slice(text.as_bytes());
}

fn map(field: &mut [u8], fragments: &[(u64, u64)]) {
    for (entry, (offset, length)) in field.chunks_exact_mut(24).zip(fragments) {
        octal(&mut entry[..12], *offset);
        octal(&mut entry[12..], *length);
    }
}

fn summed(mut header: [u8; BLOCK]) -> [u8; BLOCK] {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = Vec::new();
    write!(record, "{length} {name}=").unwrap();
    record.extend(value);
    record.push(b'\n');
    record
}

/// The records of a form, and what comes before the content.
fn sparse_records(version: &str, fragments: &[(u64, u64)]) -> (Vec<u8>, Vec<u8>) {
    let size = fragments
        .last()
        .map_or(0, |(offset, _)| *offset)
        .to_string();
    let count = fragments.len().to_string();
    let numbers = |separator: &str| {
        let pairs = fragments.iter().map(|(o, l)| format!("{o}{separator}{l}"));
        pairs.collect::<Vec<_>>().join(separator)
    };
    let mut records = Vec::new();
    let mut map = Vec::new();
    if version == "1.0" {
        records.extend(record("GNU.sparse.major", b"1"));
        records.extend(record("GNU.sparse.minor", b"0"));
        records.extend(record("GNU.sparse.realsize", size.as_bytes()));
        map.extend(format!("{count}\n{}\n", numbers("\n")).bytes());
        map.resize(map.len().next_multiple_of(BLOCK), 0);
    } else {
        records.extend(record("GNU.sparse.size", size.as_bytes()));
        records.extend(record("GNU.sparse.numblocks", count.as_bytes()));
        if version == "0.0" {
            for (offset, length) in fragments {
                records.extend(record("GNU.sparse.offset", offset.to_string().as_bytes()));
                records.extend(record("GNU.sparse.numbytes", length.to_string().as_bytes()));
            }
        } else {
            records.extend(record("GNU.sparse.map", numbers(",").as_bytes()));
        }
    }
    (records, map)
}
