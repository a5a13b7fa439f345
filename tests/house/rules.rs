//! The rules, each giving complaints with file and line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::drawing::{FEW_USERS, UNSAFE, allows, group};
use crate::source::{Kind, Source};

/// No file is longer.
const LONGEST: usize = 600;

pub(crate) struct House {
    files: Vec<Source>,
}

/// One broken rule.
pub(crate) struct Complaint {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

impl Complaint {
    fn new(file: &Source, line: usize, what: impl Into<String>) -> Complaint {
        Complaint { file: file.name.clone(), line, what: what.into() }
    }
}

impl House {
    pub(crate) fn new(files: Vec<Source>) -> House {
        House { files }
    }

    /// Files in a room: all but the two roots, which name rooms without being one.
    fn in_rooms(&self) -> impl Iterator<Item = (String, &Source)> {
        self.files.iter().filter_map(|file| Some((file.module().into_iter().next()?, file)))
    }

    /// The names that the root re-exports, each with its room: `crate::Error` is `crate::error::Error`.
    fn public_names(&self) -> BTreeMap<String, String> {
        let lib = self.files.iter().filter(|file| file.name == "lib.rs");
        lib.flat_map(Source::uses)
            .filter_map(|reach| Some((reach.path.last()?.clone(), reach.path.first()?.clone())))
            .collect()
    }

    /// Paths into a room that the drawing keeps apart from this one. Test modules count: what crosses rooms is
    /// tested in tests/.
    pub(crate) fn arrows(&self) -> Vec<Complaint> {
        let public = self.public_names();
        let mut complaints = Vec::new();
        for (room, file) in self.in_rooms() {
            let mut seen = BTreeSet::new();
            for reach in file.reaches() {
                let Some(first) = reach.path.first() else { continue };
                let to = public.get(first).unwrap_or(first);
                if !allows(&room, to) && seen.insert(to.clone()) {
                    let path = reach.path.join("::");
                    complaints.push(Complaint::new(
                        file,
                        reach.line,
                        format!("arrow {room} -> {to} is not drawn (crate::{path})"),
                    ));
                }
            }
        }
        complaints
    }

    /// Modules of the root that no group holds.
    pub(crate) fn undrawn(&self) -> Vec<Complaint> {
        let roots = self.files.iter().filter(|file| file.name == "lib.rs");
        roots
            .flat_map(|file| file.modules().into_iter().map(move |(name, line)| (file, name, line)))
            .filter(|(_, name, _)| group(name).is_none())
            .map(|(file, name, line)| {
                Complaint::new(file, line, format!("room {name} is in no group of the drawing"))
            })
            .collect()
    }

    /// Crates that only one room or two may use, used elsewhere.
    pub(crate) fn foreign_crates(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for file in &self.files {
            let room = file.module().into_iter().next().unwrap_or_default();
            for (name, users) in FEW_USERS.iter().filter(|(_, users)| !users.contains(&room.as_str())) {
                for line in file.uses_crate(name) {
                    let what = format!("{name} is used outside {}/", users.join("/ and "));
                    complaints.push(Complaint::new(file, line, what));
                }
            }
        }
        complaints
    }

    /// `unsafe` outside the files that may hold it.
    pub(crate) fn unsafe_code(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for file in self.files.iter().filter(|file| !UNSAFE.contains(&file.name.as_str())) {
            for token in file.tokens.iter().filter(|token| token.kind == Kind::Word("unsafe".into())) {
                let what = format!("`unsafe` outside {}", UNSAFE.join(" and "));
                complaints.push(Complaint::new(file, token.line, what));
            }
        }
        complaints
    }

    /// Files that are more than one idea.
    pub(crate) fn long_files(&self) -> Vec<Complaint> {
        self.files
            .iter()
            .map(|file| (file, file.text.lines().count()))
            .filter(|(_, lines)| *lines > LONGEST)
            .map(|(file, lines)| {
                Complaint::new(file, LONGEST, format!("{lines} lines; {LONGEST} at most: one subject a file"))
            })
            .collect()
    }

    /// Rooms whose `mod.rs` does not say what they own and what they do not.
    pub(crate) fn silent_rooms(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for file in
            self.files.iter().filter(|file| file.name.ends_with("/mod.rs") && file.module().len() == 1)
        {
            let doc =
                file.text.lines().filter_map(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join(" ");
            let doc = doc.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
            for said in ["owns", "not own"] {
                if !doc.contains(said) {
                    complaints.push(Complaint::new(
                        file,
                        1,
                        format!("the room's doc does not say \"{said}\""),
                    ));
                }
            }
        }
        complaints
    }
}
