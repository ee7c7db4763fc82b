//! What runs straight off a snapshot: databases, disk images, whole systems, repositories. Nothing is restored first.

mod database;
mod disk;
mod tree;
