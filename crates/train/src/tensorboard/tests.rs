//! The bytes of event files, against published check values and files that TensorBoard's own reader has read.

use super::*;

#[test]
fn crc32c_has_the_values_of_rfc_3720() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
}

#[test]
fn varints_have_seven_bits_a_byte() {
    assert_eq!(varint(0), [0]);
    assert_eq!(varint(127), [127]);
    assert_eq!(varint(300), [0xac, 2]);
    assert_eq!(varint(u64::MAX).len(), 10);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// These bytes were read by the EventAccumulator of tensorboard 2.20: scalars `loss` = 1.5 and `lr` = 0.25 at step 300,
/// and the text `note` = "hi" at step 1.
#[test]
fn records_have_the_bytes_that_tensorboard_reads() {
    let scalars = record(&event(1.0, 300, &scalar_summary([("loss", 1.5), ("lr", 0.25)])));
    assert_eq!(
        hex(&scalars),
        "2600000000000000734fe30009000000000000f03f10ac022a180a0b0a046c6f7373150000c03f0a090a026c72150000803e43f8e033"
    );
    let text = record(&event(1.0, 1, &text_summary("note", "hi")));
    assert_eq!(
        hex(&text),
        "290000000000000037ff5f0009000000000000f03f10012a1c0a1a0a046e6f74654a080a060a0474657874420808071200420268692fc425a2"
    );
}

#[test]
fn a_resumed_run_begins_a_second_file() {
    let folder = tempfile::tempdir().unwrap();
    EventWriter::create(folder.path(), 0).unwrap().scalars(1, [("loss", 2.0)]).unwrap();
    let mut writer = EventWriter::create(folder.path(), 7).unwrap();
    writer.text(8, "sample", "words").unwrap();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let bytes = std::fs::read(&files[1]).unwrap();
    let start = event(0.0, 8, &bytes_field(7, &varint_field(1, 1)));
    let (_, tail) = start.split_at(9);
    assert!(bytes.windows(tail.len()).any(|window| window == tail), "the restart is marked at step 8");
}
