//! The source files that lines refer to, each once.

use foldhash::HashMap;

/// Longest directory or file name that is carried over, bytes (Linux's PATH_MAX).
pub(super) const MAX_PATH: usize = 4096;
/// Total length of all paths, bytes; files beyond it are unknown.
const MAX_PATHS: usize = 64 << 20;

/// A source file, by order of first appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(pub usize);

/// Source files with their directories.
#[derive(Debug, Default)]
pub(super) struct Files {
    ids: HashMap<(Vec<u8>, Vec<u8>), FileId>,
    /// Directory (empty if the name is absolute or nothing is known) and name (not empty), without NUL bytes.
    pub list: Vec<(Vec<u8>, Vec<u8>)>,
    length: usize,
}

impl Files {
    /// The file `name` in `directory`, which is relative to `base`. `None` if it makes no path, or there are too many.
    pub fn add(&mut self, base: &[u8], directory: &[u8], name: &[u8]) -> Option<FileId> {
        let directory = match (name.first()?, directory.first(), base.is_empty()) {
            (b'/', ..) => Vec::new(),
            (_, None, _) => base.to_vec(),
            (_, Some(b'/'), _) | (_, _, true) => directory.to_vec(),
            _ => [base, b"/", directory].concat(),
        };
        let sound = |part: &[u8]| part.len() <= MAX_PATH && !part.contains(&0);
        if !sound(name) || !sound(&directory) {
            return None;
        }
        let key = (directory, name.to_vec());
        if let Some(id) = self.ids.get(&key) {
            return Some(*id);
        }
        self.length += key.0.len() + key.1.len();
        if self.length > MAX_PATHS {
            return None;
        }
        let id = FileId(self.list.len());
        self.list.push(key.clone());
        self.ids.insert(key, id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_joined_and_files_counted_once() {
        let mut files = Files::default();
        let mut path = |base: &str, directory: &str, name: &str| {
            let id = files.add(base.as_bytes(), directory.as_bytes(), name.as_bytes())?;
            let (directory, name) = &files.list[id.0];
            Some((id.0, [directory.as_slice(), b"|", name].concat()))
        };
        assert_eq!(path("/src", "", "a.c"), Some((0, b"/src|a.c".to_vec())));
        assert_eq!(path("/src", "lib", "b.c"), Some((1, b"/src/lib|b.c".to_vec())));
        assert_eq!(path("/src", "/usr", "c.h"), Some((2, b"/usr|c.h".to_vec())));
        assert_eq!(path("/src", "lib", "/abs.c"), Some((3, b"|/abs.c".to_vec())));
        assert_eq!(path("", "/src", "a.c"), Some((0, b"/src|a.c".to_vec())));
        assert_eq!(path("", "", ""), None);
        assert_eq!(path("", "", "nul\0"), None);
        assert_eq!(path("/src", &"d".repeat(4096), "a.c"), None);
    }
}
