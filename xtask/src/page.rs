//! The project at the beginning of `docs/library.md`, built from the page itself.
//!
//! What a reader copies has to work as it is printed.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};

use crate::cargo::cargo_for_wasm;
use crate::sys;

/// The files of the project.
///
/// On the page, each name is before the block of the file.
const FILES: [&str; 3] = ["Cargo.toml", "src/lib.rs", "spin.toml"];

/// Builds the project as `greeting.wasm`, in the folder of the components.
///
/// The project is in its own folder with this repository beside it, as the page requires.
pub fn project() -> Result<()> {
    let page = sys::root().join("docs/library.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let folder = sys::cache()?.join("page");
    let project = folder.join("greeting");
    fs::create_dir_all(project.join("src")).with_context(|| project.display().to_string())?;
    let repository = folder.join("verve");
    // The link may lead to another clone.
    let _ = fs::remove_file(&repository);
    symlink(sys::root(), &repository).with_context(|| repository.display().to_string())?;
    for file in FILES {
        let block = block(&text, file).with_context(|| format!("docs/library.md has no `{file}`"))?;
        fs::write(project.join(file), block)?;
    }
    // The same lock file lets the build reuse code that was compiled for the other components.
    fs::copy(sys::root().join("Cargo.lock"), project.join("Cargo.lock"))?;
    sys::log("building the project of docs/library.md");
    let mut build = cargo_for_wasm("build")?;
    sys::run(build.arg("--release").current_dir(project))
}

/// Returns the block after the first line that is only the file's name.
fn block<'a>(page: &'a str, file: &str) -> Option<&'a str> {
    let (_, after) = page.split_once(&format!("\n`{file}`:\n"))?;
    let (_, block) = after.split_once("```")?;
    let (_, block) = block.split_once('\n')?;
    Some(block.split_once("```")?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_by_its_files_name() {
        let page = "# Page\n\n`a.toml`:\n\n```toml\na = 1\n```\n\n`b.rs`:\n\n```rust\nfn b() {}\n```\n";
        assert_eq!(block(page, "a.toml"), Some("a = 1\n"));
        assert_eq!(block(page, "b.rs"), Some("fn b() {}\n"));
        assert_eq!(block(page, "c"), None);
    }
}
