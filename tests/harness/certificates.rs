//! Certificates made at run time by openssl's command: an authority, what it signs, and what should not be trusted.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `openssl` in `dir`, and gives what it says.
#[track_caller]
pub fn openssl(dir: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl's command is there (see .ci/setup)");
    child.stdin.take().expect("piped").write_all(input).expect("it reads");
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// A certificate and its key, both as PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub pem: PathBuf,
    /// Its key, not encrypted.
    pub key: PathBuf,
}

/// An authority of its own, in a folder that is the caller's.
#[derive(Clone, Debug)]
pub struct Authority {
    dir: PathBuf,
    name: String,
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Of all that is made here. Section `old` is for certificates that have ended.
const CONFIG: &str = "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = a test\n\
    [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
    [server]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n\
    [client]\nbasicConstraints = critical, CA:FALSE\nextendedKeyUsage = clientAuth\n\
    [old]\ndatabase = index\nserial = serial\nnew_certs_dir = .\npolicy = any\ndefault_md = sha256\n\
    [any]\ncommonName = supplied\n";

impl Authority {
    /// Makes `NAME.pem` and `NAME.key` in `dir`.
    pub fn new(dir: &Path, name: &str) -> Authority {
        std::fs::write(dir.join("config"), CONFIG).expect("it can be written");
        let made = Authority { dir: dir.to_owned(), name: name.to_owned() };
        let Certificate { pem, key } = made.named(name);
        let asked = ["req", "-x509", "-config", "config", "-extensions", "ca", "-days", "2"];
        openssl(dir, &[&asked[..], &NEW_KEY, &["-keyout", text(&key), "-out", text(&pem)]].concat(), b"");
        made
    }

    /// Its certificate.
    pub fn pem(&self) -> PathBuf {
        self.named(&self.name).pem
    }

    /// Its certificate as it may lie with somebody who has not looked after it: the same key and name, ended long ago.
    pub fn ended(&self) -> PathBuf {
        let ended = self.named(&format!("{}-ended", self.name)).pem;
        let key = self.named(&self.name).key;
        std::fs::write(self.dir.join("index"), "").expect("it can be written");
        std::fs::write(self.dir.join("serial"), "01\n").expect("it can be written");
        openssl(&self.dir, &["req", "-new", "-config", "config", "-key", text(&key), "-out", "old.csr"], b"");
        let signed =
            ["ca", "-batch", "-config", "config", "-name", "old", "-selfsign", "-keyfile", text(&key)];
        let dates = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-notext"];
        let with = ["-in", "old.csr", "-extensions", "ca", "-out", text(&ended)];
        openssl(&self.dir, &[&signed[..], &dates, &with].concat(), b"");
        ended
    }

    /// A certificate for a server at 127.0.0.1.
    pub fn server(&self, name: &str) -> Certificate {
        self.sign(name, "server")
    }

    /// A certificate for a client that is called `name`.
    pub fn client(&self, name: &str) -> Certificate {
        self.sign(name, "client")
    }

    fn sign(&self, name: &str, kind: &str) -> Certificate {
        let made = self.named(name);
        let request = format!("{name}.csr");
        let subject = format!("/CN={name}");
        let asked = ["req", "-new", "-config", "config", "-subj", &subject, "-keyout", text(&made.key)];
        openssl(&self.dir, &[&asked[..], &["-out", &request], &NEW_KEY].concat(), b"");
        let own = self.named(&self.name);
        let signed = ["x509", "-req", "-in", &request, "-CA", text(&own.pem), "-CAkey", text(&own.key)];
        let with = ["-CAcreateserial", "-days", "2", "-extfile", "config", "-extensions", kind];
        openssl(&self.dir, &[&signed[..], &with, &["-out", text(&made.pem)]].concat(), b"");
        made
    }

    fn named(&self, name: &str) -> Certificate {
        Certificate { pem: self.dir.join(format!("{name}.pem")), key: self.dir.join(format!("{name}.key")) }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's name is text")
}
