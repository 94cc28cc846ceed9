"""The published contract (Huawei IoT platform, v1.5.0 of its upgrade API): its paths, spellings and codes live here."""
