//! What befalls the blob store of a scene: it is away, it is slow, it has lost a blob or has other bytes in its place.
//!
//! Owns: these faults, each to its end. Does not own: the others (`faults`), what must hold after them (`oracle`).

use super::faults::REACHED;
use super::instance::{lines, said};
use super::oracle::{Violation, broken};
use super::scene::Scene;

/// Records that come while no version can be stored: 26 MB, more than the log may hold and what is on its way to it.
const FLOOD: u64 = 60_000;
/// Bytes of log then: more than lies in memory of what is under way.
pub const FLOODED: u64 = 16 << 20;
/// What a writer says that takes over and finds a blob gone, or other than announced.
const MISSED: &str = "a blob of the last version is gone";

impl Scene {
    /// The blob store is away for a while: a file stands where its folder was.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn store_away(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        self.store_away_for(self.chance.between(200, 1_500));
        let now = self.clock().now();
        self.settle(now)
    }

    /// The same, while more comes than queue and log hold.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn flooded(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        self.workload.burst(FLOOD);
        self.store_away_for(FLOOD);
        self.worked_off()?;
        let now = self.clock().now();
        self.settle(now)
    }

    fn store_away_for(&mut self, records: u64) {
        let (blobs, aside) = (self.dir().join("blobs"), self.dir().join("aside"));
        self.fault();
        std::fs::rename(&blobs, &aside).expect("the store's folder can be moved");
        std::fs::write(&blobs, "no folder").expect("a file can be written");
        self.after_records(records);
        // What was stored into the folder by whoever had it open is there; what was refused is not.
        std::fs::remove_file(&blobs).expect("the file can be removed");
        std::fs::rename(&aside, &blobs).expect("the store's folder can be moved back");
    }

    /// Each of some blobs takes its time to be stored, while records come on; the writer dies at the one after them, which
    /// shows that they were, and the next one stores what waits.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn store_slow(&mut self) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        self.kill()?;
        // A failpoint holds up one of the threads that the writer works with, too: for some seconds in all.
        let (blobs, ms) = (self.chance.between(4, 16), self.chance.between(50, 600));
        self.fault();
        self.start(0, Some(&format!("store.put={blobs}*sleep({ms})->return(abort)")))?;
        self.dies_at("store.put")?;
        let now = self.start(0, None)?;
        self.settle(now)
    }

    /// The writer is killed and has no cache any more, and of what it must fetch the store has lost one blob, or has it in
    /// other bytes (`wrong`). It finds older ones that lead to the same version, or says which it needs. It is killed once more,
    /// at whatever it has come to, and the blob is back.
    ///
    /// # Errors
    /// The first promise that is broken, or that the blob is not missed.
    pub fn store_spoilt(&mut self, wrong: bool) -> Result<(), Violation> {
        self.after_records(self.chance.between(1, 300));
        self.kill()?;
        let (version, needed) = self.oracle.needed();
        // The snapshot at least as often as all the deltas.
        let blob = needed.first().map(|first| match self.chance.one_in(2) {
            true => first,
            false => self.chance.pick(&needed),
        });
        let Some(blob) = blob else {
            return broken(0, format!("version {version} is made of nothing\n{}", self.logs()));
        };
        let (path, aside) = (self.dir().join("blobs").join(&blob.name), self.dir().join("spoilt"));
        // Moved, not written over: the archive's link is to the same file.
        std::fs::rename(&path, &aside).expect("a kept blob can be moved");
        if wrong {
            let mut bytes = std::fs::read(&aside).expect("it is there");
            let at = self.chance.below(bytes.len() as u64) as usize;
            *bytes.get_mut(at).expect("below their number") ^= 1 << self.chance.below(8);
            std::fs::write(&path, bytes).expect("a blob can be written");
        }
        self.writer().lose("cache");
        self.fault();
        self.start(0, None)?;
        let patience = self.patience.clone();
        let missed = patience.held(REACHED, || {
            let log = self.writer().log_of_this_process();
            if log.contains(MISSED) {
                return Ok(true);
            }
            // What was committed at its death may have become readable after the oracle has looked, and need other blobs.
            match lines(&log).find(|line| said(line, "message") == "took over") {
                Some(taken) => Ok(said(&taken, "version") != version.to_string()),
                None => Err(()),
            }
        });
        if missed != Ok(true) {
            let what = format!("version {version} is taken over without {}", blob.name);
            return broken(10, format!("{what}\n{}", self.logs()));
        }
        self.after_records(self.chance.between(1, 1_500));
        self.fault();
        self.writer().kill();
        // Back before anybody looks at what is left. If it is not kept any more, the next life cleans it away.
        std::fs::rename(&aside, &path).expect("a blob can be moved back");
        self.at_rest()?;
        let now = self.start(0, None)?;
        self.settle(now)
    }
}
