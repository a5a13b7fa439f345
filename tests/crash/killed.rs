//! SIGKILL after any number of records, and with parts of the disk gone.

use stillwell_tests::Broker;
use stillwell_tests::campaign::{Plan, Scene, seeded};

#[test]
fn a_writer_that_is_killed_again_and_again_loses_nothing_and_says_nothing_twice() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        for _ in 0..4 {
            scene.killed()?;
        }
        scene.disk_lost()?;
        scene.reader_killed()?;
        scene.finish()
    });
}

/// What check 9 allows for is what others took of the machine, processors and disk. A writer that hangs took nothing.
#[test]
fn a_writer_that_hangs_has_no_excuse_in_a_slow_machine() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        scene.kill()?;
        // Longer than check 9 waits by the clock, whatever others do.
        let now = scene.start(0, Some("takeover.log=sleep(600000)"))?;
        let hung = scene.settle(now).expect_err("nobody takes over");
        assert_eq!(hung.check, 9, "{hung}");
        println!("{}", hung.to_string().lines().next().unwrap_or_default());
        scene.kill()?;
        let now = scene.start(0, None)?;
        scene.settle(now)?;
        scene.finish()
    });
}

/// A log that its process had open, and that nobody took away, is lost where it is not there.
#[test]
fn a_log_that_is_gone_is_no_empty_one() {
    seeded(|seed| {
        let mut scene = Scene::set(Broker::shared(), &Plan::new(seed))?;
        scene.kill()?;
        let (dataset, log) = (scene.dataset().to_owned(), scene.writer().data().join("log"));
        scene.writer().logged(&dataset).expect("it is there");
        let aside = log.with_file_name("aside");
        std::fs::rename(&log, &aside).expect("nobody has it open");
        scene.writer().logged(&dataset).expect_err("it was there");
        // As a first life leaves it that dies before it is made.
        std::fs::create_dir_all(log.join(&dataset)).expect("a folder can be made");
        std::fs::write(log.join(&dataset).join("LOCK"), "").expect("a file can be written");
        scene.writer().logged(&dataset).expect_err("it was there");
        scene.writer().has_another_log();
        assert_eq!(scene.writer().logged(&dataset), Ok(Vec::new()));
        scene.writer().lose("log");
        std::fs::rename(&aside, &log).expect("nobody has it open");
        let now = scene.start(0, None)?;
        scene.settle(now)?;
        scene.finish()
    });
}
