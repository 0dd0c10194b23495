//! Packs `hello-server` into images: `hello-pack HELLO-SERVER OUT-DIR` writes `hello-v1.tar` and `hello-v2.tar`, OCI layouts that
//! `knarr image import` takes. The two differ in their version only, for rollouts to have somewhere to go.

use std::path::Path;
use std::process::ExitCode;

use knarr_hello::Image;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [program, out] = &*arguments else {
        eprintln!("usage: hello-pack HELLO-SERVER OUT-DIR");
        return ExitCode::from(2);
    };
    match pack(Path::new(program), Path::new(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("hello-pack: {err}");
            ExitCode::FAILURE
        }
    }
}

fn pack(program: &Path, out: &Path) -> std::io::Result<()> {
    for version in ["v1", "v2"] {
        let mut image = Image::new(&format!("knarr.local/hello:{version}"))
            .program("hello-server", program)?
            .directory("tmp", 0o1777);
        image.env = vec![format!("VERSION={version}")];
        image.entrypoint = vec!["/hello-server".to_owned()];
        let name = out.join(format!("hello-{version}.tar"));
        // In one step, so that nobody imports half of it.
        let new = name.with_extension("new");
        std::fs::write(&new, image.oci_layout()?)?;
        std::fs::rename(&new, &name)?;
    }
    Ok(())
}
