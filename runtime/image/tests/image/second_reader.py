"""Reads archives with Python's tarfile and says, a line a file, what tree comes of each of them: containerd's rules, in memory.

second_reader.py ARCHIVE... Source of the rules: containerd, archive/tar.go and tar_unix.go, for overlayfs.
"""
import hashlib
import posixpath
import sys
import tarfile

XATTR = "SCHILY.xattr."


class Node:
    def __init__(self, kind):
        self.kind, self.mode, self.uid, self.gid, self.mtime = kind, 0o755, 0, 0, None
        self.size, self.digest, self.link, self.device = 0, "-", b"", (0, 0)
        self.xattrs, self.children, self.opaque = {}, {}, False


def tree(path):
    root = Node("d")
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            add(root, archive, member)
    return root


def names(path):
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def directory(root, wanted):
    """Where a path leads inside the root: links are followed, and what is missing is made."""
    way, to_go = [root], list(reversed(wanted))
    while to_go:
        name = to_go.pop()
        if name == b"..":
            way = way[:-1] or [root]
            continue
        here = way[-1].children.get(name)
        if here is None or here.kind == "w":
            made = Node("d")
            made.opaque = here is not None
            way[-1].children[name] = made
            way.append(made)
        elif here.kind == "l":
            if here.link.startswith(b"/"):
                way = [root]
            to_go.extend(reversed(names(here.link)))
        else:
            assert here.kind == "d", (name, here.kind)
            way.append(here)
    return way[-1]


def add(root, archive, member):
    raw = member.name.encode("utf-8", "surrogateescape")
    path = names(posixpath.normpath(b"/" + raw))
    if not path:
        return attributes(root, member)
    parent, name = directory(root, path[:-1]), path[-1]
    before = parent.children.get(name)
    if name == b".wh..wh..opq":
        parent.opaque = True
        return
    if name.startswith(b".wh..wh."):
        return
    if name.startswith(b".wh."):
        hidden = parent.children.get(name[4:])
        if hidden is None:
            parent.children[name[4:]] = Node("w")
        elif hidden.kind == "d":
            hidden.opaque = True
        return
    if member.isdir():
        if before is None or before.kind != "d":
            parent.children[name] = Node("d")
            parent.children[name].opaque = before is not None and before.kind == "w"
    elif member.islnk():
        target = names(posixpath.normpath(b"/" + member.linkname.encode("utf-8", "surrogateescape")))
        parent.children[name] = directory(root, target[:-1]).children[target[-1]]
    elif member.issym():
        parent.children[name] = Node("l")
        parent.children[name].link = member.linkname.encode("utf-8", "surrogateescape")
    elif member.ischr() or member.isblk() or member.isfifo():
        node = Node("c" if member.ischr() else "b" if member.isblk() else "p")
        node.device = (0, 0) if member.isfifo() else (member.devmajor, member.devminor)
        parent.children[name] = node
    else:
        content = archive.extractfile(member).read()
        parent.children[name] = Node("f")
        parent.children[name].size = len(content)
        parent.children[name].digest = hashlib.sha256(content).hexdigest()
    attributes(parent.children[name], member)


def attributes(node, member):
    node.uid, node.gid, node.mtime = member.uid, member.gid, int(member.mtime // 1)
    node.mode = 0o777 if node.kind == "l" else member.mode & 0o7777
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR):
            name = key[len(XATTR):].encode("utf-8", "surrogateescape")
            node.xattrs[name] = value.encode("utf-8", "surrogateescape")


def shown(text):
    return "".join(chr(b) if 32 < b < 127 and b != 92 else f"\\x{b:02x}" for b in text)


def lines(node, path, seen):
    first = seen.setdefault(id(node), path)
    xattrs = dict(node.xattrs)
    if node.opaque:
        xattrs[b"trusted.overlay.opaque"] = b"y"
    if node.kind == "w":
        yield f"{shown(path)} whiteout"
    else:
        attributes = ",".join(f"{shown(k)}={v.hex()}" for k, v in sorted(xattrs.items()))
        time = "-" if node.mtime is None else node.mtime
        yield (f"{shown(path)} {node.kind} {node.mode:o} {node.uid}:{node.gid} {time} {node.size} {node.digest} "
               f"{node.device[0]}:{node.device[1]} ->{shown(node.link)} ={shown(first)} [{attributes}]")
    for name, child in sorted(node.children.items()):
        yield from lines(child, path + b"/" + name if path else name, seen)


for path in sys.argv[1:]:
    print("archive", path)
    for line in list(lines(tree(path), b"", {}))[1:]:
        print(line)
