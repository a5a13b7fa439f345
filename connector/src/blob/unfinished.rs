//! What a put into a folder leaves that is killed before its end: `NAME#1`, which is renamed once it is whole.
//!
//! Owns: knowing such files. Does not own: when they are looked for (`producer/clean`).

use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Deletes those below `folder` that were written last before `before_ms`, milliseconds since the Unix epoch. What is gone
/// meanwhile was another's to delete. Blocks.
pub(super) fn sweep(folder: &Path, before_ms: i64) -> io::Result<u64> {
    let mut swept = 0;
    let listed = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        listed => listed?,
    };
    for file in listed {
        let file = file?;
        if file.file_type()?.is_dir() {
            swept += sweep(&file.path(), before_ms)?;
            continue;
        }
        let name = file.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
        if !number
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        {
            continue;
        }
        let gone = file.metadata().and_then(|file| file.modified()).and_then(|written| {
            // Before the epoch is long ago, too.
            let written = written.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
            match written < before_ms {
                true => std::fs::remove_file(file.path()).map(|()| 1),
                false => Ok(0),
            }
        });
        match gone {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            gone => swept += gone?,
        }
    }
    Ok(swept)
}
